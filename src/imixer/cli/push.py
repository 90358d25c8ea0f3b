"""Push a model to the Hugging Face Hub: `imixer push`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, add_checkpoint, new_parser
from imixer.cli.terminal import announce_loading
from imixer.escaping import one_line


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser(
        "Push a run's model to the Hugging Face Hub, with a model card. `hf auth login` or HF_TOKEN says who you are. "
        "No image and no path of this machine is uploaded; `imixer export --format hub` shows what would be."
    )
    parser.add_argument("run", metavar="RUN", type=str, help="Run directory that `imixer train` made.")
    parser.add_argument("repository", metavar="USER/NAME", type=str, help="Repository, made if it is not there.")
    parser.add_argument("--private", type=bool, default=False, help="Make a new repository private.")
    add_checkpoint(parser)
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    announce_loading("the run")
    from imixer.training.hub import push

    url = push(args.run, args.repository, checkpoint=args.checkpoint, private=args.private)
    print(one_line(f"pushed: {url}"))
    load = f'timm.create_model("hf-hub:{args.repository}", pretrained=True)'
    print(one_line(f"load it: import imixer.models, timm; {load}"))


COMMAND = Command("Push a model to the Hugging Face Hub.", build, run)
