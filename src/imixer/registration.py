"""Registration of our models with libraries that are imported later, without importing them, which takes seconds."""

import importlib
import importlib.abc
import importlib.util
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# What is imported right after what.
_AFTER = {
    "timm": "imixer.models",
    "transformers.models.timm_wrapper.modeling_timm_wrapper": "imixer.models.hugging_face",
}


def register_with_others() -> None:
    """Make timm know our models, and Transformers their weights: at once if imported, otherwise after their import."""
    for theirs, ours in _AFTER.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
        elif not any(isinstance(finder, _After) and finder.theirs == theirs for finder in sys.meta_path):
            sys.meta_path.insert(0, _After(theirs, ours))


class _After(importlib.abc.MetaPathFinder):
    """Finder of one module, as Python would find it, with a loader that imports one of ours afterwards.

    It stays until that has happened: many libraries look whether a module is there long before they import it.
    """

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs, self.ours = theirs, ours
        self._asking = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.theirs or getattr(self._asking, "others", False):
            return None
        self._asking.others = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.others = False
        if spec is not None and spec.loader is not None:
            spec.loader = _LoaderThenOurs(spec.loader, self)
        return spec


class _LoaderThenOurs(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, finder: _After) -> None:
        self.loader, self.finder = loader, finder

    def __getattr__(self, name: str) -> object:  # of a module that is looked at and not imported, such as its source
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module(self.finder.ours)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
