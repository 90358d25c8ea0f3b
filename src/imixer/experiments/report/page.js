// Draw the charts in the page's colours, and again when these change or the page is printed.
const charts = [...document.querySelectorAll("[data-chart]")];

function colors() {
  const style = getComputedStyle(document.documentElement);
  return { text: style.getPropertyValue("--text").trim(), line: style.getPropertyValue("--line").trim() };
}

function draw() {
  const { text, line } = colors();
  for (const chart of charts) {
    const { data, layout } = JSON.parse(document.getElementById(chart.dataset.chart).textContent);
    layout.font = { ...layout.font, color: text };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis/.test(name)) {
        layout[name] = { ...layout[name], gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
      }
    }
    for (const note of layout.annotations || []) note.font = { ...note.font, color: text };
    const narrow = chart.clientWidth < 640;
    if (narrow) stack(layout);
    Plotly.react(chart, data, layout, { responsive: true, displayModeBar: false });
  }
}

// On a phone, panels side by side go below each other.
function stack(layout) {
  const axes = Object.keys(layout).filter((name) => name.startsWith("xaxis"));
  if (axes.length < 2) return;
  const height = 1 / axes.length;
  axes.forEach((name, place) => {
    const top = 1 - place * height;
    layout[name].domain = [0, 1];
    if (place < axes.length - 1) delete layout[name].title;
    layout[name.replace("x", "y")].domain = [top - height * 0.7, top];
    const note = (layout.annotations || [])[place];
    if (note) Object.assign(note, { x: 0.5, y: top, yanchor: "bottom" });
  });
  layout.height = 260 * axes.length;
  layout.legend = { ...layout.legend, y: -0.1 };
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("beforeprint", () => { document.querySelectorAll("details").forEach((d) => { d.open = true; }); draw(); });
draw();
