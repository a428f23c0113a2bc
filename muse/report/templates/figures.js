// Unpacks plotly (gzip, base85, in window.musePlotly) and draws every .muse-figure in the colours of the page.
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

  // A layout with what of it differs on a phone: axes part by part, all else as a whole.
  function adapted(layout, changes = {}) {
    const merged = { ...layout };
    for (const [key, value] of Object.entries(changes)) {
      merged[key] = value && typeof value === "object" && !Array.isArray(value) ? { ...layout[key], ...value } : value;
    }
    return merged;
  }

  // The words of a panel, of which a sheet has three beside each other as a screen has, in two thirds of its width.
  const smaller = (note) => (/domain$/.test(note.xref) ? { ...note, font: { ...note.font, size: 0.75 * note.font.size } } : note);

  function laidOut(box, figure) {
    const narrow = !onPaper && box.clientWidth < 560;
    const layout = narrow ? adapted(figure.layout, figure.narrow) : figure.layout;
    const legend = narrow ? { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom" } : layout.legend;
    const margin = { l: 8, r: 16, b: 8, ...layout.margin, t: 24 };
    const font = { ...layout.font, ...(narrow ? { size: 11 } : {}) };
    const height = layout.height || 380;
    const onOneSheet = height > PAPER.height * 1.35 ? height : Math.min(height, PAPER.height); // rows lower still would not hold their text
    const size = onPaper ? { autosize: false, width: PAPER.width, height: onOneSheet } : { autosize: true, height };
    const words = onPaper ? { annotations: layout.annotations?.map(smaller) } : {};
    return { ...layout, ...words, legend, margin, font, ...themed({ ...layout, font }), ...size, dragmode: false };
  }

  const drawn = [];
  async function draw(box) {
    try {
      const figure = JSON.parse(box.querySelector("script").textContent);
      for (const trace of figure.data) { // the number of an earlier trace, whose x it has
        if (typeof trace.x === "number") trace.x = figure.data[trace.x].x;
      }
      const plot = document.createElement("div");
      box.append(plot);
      await Plotly.newPlot(plot, figure.data, laidOut(box, figure), {
        responsive: true, displaylogo: false, showSendToCloud: false, displayModeBar: false,
      });
      describe(box, plot);
      box.classList.add("drawn");
      drawn.push([box, plot, figure]);
      offer(box, figure);
    } catch (error) {
      fail(box, error);
    }
  }
  // A picture with the words that stand for it: its layers are drawn one over the other, the first one speaks.
  function describe(box, plot) {
    box.closest("figure")?.removeAttribute("role");
    plot.querySelectorAll(".main-svg").forEach((layer, place) => {
      layer.setAttribute(place ? "aria-hidden" : "role", place ? "true" : "img");
      if (!place) layer.setAttribute("aria-label", box.querySelector(".muse-alt").textContent);
    });
  }

  const cell = (value) => (value == null ? "" : /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const at = (values, place) => (Array.isArray(values) ? values[place] : values);
  // What a figure draws as a table: a line for each point, with the ends of its interval where it has one.
  function table(figure) {
    const lines = [["panel", "name", "x", "y", "low", "high", "text"]];
    for (const trace of figure.data) {
      const x = trace.x || trace.theta || [], y = trace.y || trace.r || [];
      const [values, bars] = trace.error_y ? [y, trace.error_y] : [x, trace.error_x];
      for (let i = 0; i < x.length; i++) {
        const ends = bars?.array ? [values[i] - (bars.arrayminus || bars.array)[i], values[i] + bars.array[i]] : [null, null];
        lines.push([trace.meta, trace.name, x[i], y[i], ...ends.map((end) => end && Number(end.toPrecision(6))), at(trace.hovertext || trace.text, i)]);
      }
    }
    return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
  }
  // The data as a file, made of what the page holds already.
  function offer(box, figure) {
    const place = box.closest("figure")?.querySelector(".muse-files");
    if (!place) return;
    const link = document.createElement("a");
    link.textContent = place.dataset.csv;
    link.download = box.closest("figure").id + ".csv";
    link.href = URL.createObjectURL(new Blob([table(figure)], { type: "text/csv" }));
    place.append(link);
  }
  function fail(box, error) {
    box.classList.add("failed");
    box.dataset.error = String(error);
  }

  // Five letters of Python's base64.b85encode are four bytes, the highest first; the last ones may be fewer.
  function bytesOf(text) {
    const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
    const value = new Uint8Array(128);
    [...letters].forEach((letter, i) => (value[letter.charCodeAt(0)] = i));
    const missing = (5 - (text.length % 5)) % 5;
    const words = new DataView(new ArrayBuffer(((text.length + missing) / 5) * 4));
    for (let at = 0; at < text.length; at += 5) {
      let word = 0;
      for (let i = at; i < at + 5; i++) word = 85 * word + (i < text.length ? value[text.charCodeAt(i)] : 84);
      words.setUint32((at / 5) * 4, word);
    }
    return new Uint8Array(words.buffer, 0, words.byteLength - missing);
  }

  async function unpack() {
    const packed = bytesOf(window.musePlotly);
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
    let narrow = innerWidth < 640;
    addEventListener("resize", () => {
      if (narrow !== innerWidth < 640) redraw();
      narrow = innerWidth < 640;
    });
  }

  function redraw() {
    for (const [box, plot, figure] of drawn) Plotly.react(plot, figure.data, laidOut(box, figure));
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
