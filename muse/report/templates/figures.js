// Unpacks plotly (gzip, base64, in window.musePlotly) and draws every .muse-figure in the colours of the page.
(() => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)"), print = matchMedia("print");
  const PAPER = { width: 680, height: 860 }; // pixels: what fits on A4 and on Letter between margins of 15 mm
  let onPaper = print.matches;
  const font = 'system-ui, -apple-system, "Segoe UI", Roboto, "Hiragino Sans", "Noto Sans CJK JP", sans-serif';
  const colors = () => dark.matches && !onPaper
    ? { text: "#c6ccd4", line: "rgba(160,170,185,.24)", card: "#232830" }
    : { text: "#3d444d", line: "rgba(90,100,115,.2)", card: "#ffffff" };

  // The part of a layout that depends on the colour scheme.
  function themed(layout) {
    const { text, line, card } = colors();
    const look = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { ...layout.font, color: text, family: font },
      hoverlabel: { ...layout.hoverlabel, bgcolor: card, bordercolor: line, font: { color: text, family: font } },
    };
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) look[key] = { ...layout[key], ...axis };
      if (/^polar\d*$/.test(key)) {
        const polar = layout[key];
        look[key] = { ...polar, bgcolor: "rgba(0,0,0,0)", radialaxis: { ...polar.radialaxis, ...axis }, angularaxis: { ...polar.angularaxis, ...axis } };
      }
    }
    return look;
  }

  function laidOut(box, layout) {
    const narrow = !onPaper && box.clientWidth < 560;
    const legend = narrow ? { orientation: "h", x: 0, y: -75 / Math.max(80, (layout.height || 380) - 90), yanchor: "top" } : layout.legend;
    const margin = { l: 8, r: 16, b: 8, ...layout.margin, t: 12 };
    const font = { ...layout.font, ...(narrow ? { size: 11 } : {}) };
    const height = layout.height || 380;
    const onOneSheet = height > PAPER.height * 1.35 ? height : Math.min(height, PAPER.height); // rows lower still would not hold their text
    const size = onPaper ? { autosize: false, width: PAPER.width, height: onOneSheet } : { autosize: true, height };
    return { ...layout, legend, margin, font, ...themed({ ...layout, font }), ...size, dragmode: false };
  }

  const drawn = [];
  async function draw(box) {
    try {
      const figure = JSON.parse(box.querySelector("script").textContent);
      const plot = document.createElement("div");
      box.append(plot);
      await Plotly.newPlot(plot, figure.data, laidOut(box, figure.layout), {
        responsive: true, displaylogo: false, showSendToCloud: false, displayModeBar: "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      });
      box.classList.add("drawn");
      drawn.push([box, plot, figure]);
    } catch (error) {
      fail(box, error);
    }
  }
  function fail(box, error) {
    box.classList.add("failed");
    box.dataset.error = String(error);
  }

  async function unpack() {
    const packed = Uint8Array.from(atob(window.musePlotly), (letter) => letter.charCodeAt(0));
    delete window.musePlotly;
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    script.remove();
    if (!window.Plotly) throw new Error("plotly did not load");
  }

  async function main() {
    const boxes = [...document.querySelectorAll(".muse-figure")];
    try {
      await unpack();
      for (const box of boxes) await draw(box);
    } catch (error) {
      boxes.forEach((box) => fail(box, error));
    }
    root.dataset.figures = "done";
    dark.addEventListener("change", redraw);
  }

  function redraw() {
    for (const [box, plot, figure] of drawn) Plotly.react(plot, figure.data, laidOut(box, figure.layout));
  }
  // A page on its way to paper keeps the sizes of the screen, and a browser without a window only changes the medium.
  function layOutFor(toPaper) {
    if (onPaper === toPaper) return;
    onPaper = toPaper;
    redraw();
  }
  addEventListener("beforeprint", () => layOutFor(true));
  addEventListener("afterprint", () => layOutFor(false));
  print.addEventListener("change", () => layOutFor(print.matches));
  main();
})();
