// Typeset what pymdownx.arithmatex marks: \(...\) in a line, \[...\] on a line of its own.
for (const element of document.querySelectorAll(".arithmatex")) {
  const source = element.textContent;
  katex.render(source.slice(2, -2), element, { displayMode: source.startsWith("\\["), throwOnError: false });
}
