// The interactive map of notebooks/beyond/landscape_map: what a reader chooses, drawn by the copy of plotly.js beside
// this file. Its data are in the page; nothing is fetched from anywhere else.
"use strict";
(() => {
  const here = document.currentScript.src;
  const boxes = document.querySelectorAll(".pg-map");
  if (!boxes.length) return;
  const load = (tag, attributes) => new Promise((done, failed) => {
    document.head.append(Object.assign(document.createElement(tag), attributes, { onload: done, onerror: failed }));
  });
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const mouse = matchMedia("(pointer: fine)");
  const SECONDS_A_LAYER = 1.2;
  const FADED = 0.1;

  // Plotly reads a little HTML in its texts; a question is not meant to be any.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const two = (number) => (Math.round(number * 100) / 100 || 0).toFixed(2);
  const interval = ([value, low, high]) => `${two(value)} [${two(low)}, ${two(high)}]`;
  const fill = (select, pairs) => select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));

  function start(box) {
    const data = JSON.parse(box.querySelector("script").textContent);
    const part = (role) => box.querySelector(`[data-role="${role}"]`);
    const [view, colouring, only, at] = ["view", "colouring", "only", "at"].map(part);
    const [slider, button] = ["input", "button"].map((name) => box.querySelector(name));
    const [plot, status] = [".pg-map-plot", ".pg-map-status"].map((name) => box.querySelector(name));
    const layers = () => data.views[view.value].layers;
    const layer = () => layers()[slider.value];
    let timer = null;
    let drawn = null;  // what the last picture was of: only the next layer of the same is worth a movement

    // Names of the categories, largest peak first, and the category of every question.
    function sorted() {
      if (colouring.value !== "peak") {
        const names = data.categories[colouring.value];
        return [names, data.questions.map((question) => names.indexOf(question[colouring.value]))];
      }
      const count = Math.max(...layer().peak) + 1;
      const names = Array.from({ length: count }, (_, i) => `peak ${i + 1}`);
      // A state identical to another question's was left out of the search for peaks.
      if (layer().peak.includes(-1)) names.push("in no peak");
      return [names, layer().peak.map((peak) => (peak < 0 ? count : peak))];
    }

    // A few far points must not make one dot of all the others: they are drawn on the edge.
    const within = (place) => Math.min(Math.max(place, -data.reach), data.reach);

    function traces(names, category) {
      const { x, y } = layer();
      const ink = getComputedStyle(box).color;
      return names.map((name, i) => {
        const its = category.flatMap((value, question) => (value === i ? [question] : []));
        return {
          type: "scatter",
          mode: "markers",
          name: plain(name),
          x: its.map((question) => within(x[question] / data.unit)),
          y: its.map((question) => within(y[question] / data.unit)),
          text: its.map((question) => said(data.questions[question])),
          hovertemplate: "%{text}<extra></extra>",
          opacity: only.value === "" || only.value === name ? 1 : FADED,
          showlegend: its.length > 0 && names.length <= data.names_in_legend,
          marker: {
            size: plot.clientWidth < 500 ? 6 : 8,
            color: data.colours[i % data.colours.length],
            symbol: data.marks[i % data.marks.length],
            line: { width: 0.6, color: ink },
          },
        };
      });
    }

    function said(question) {
      const answer = `${question.answer}. ${plain(question.option)}`;
      return `<b>${plain(question.subject)}</b><br>${folded(question.text)}<br>right: ${answer}`;
    }

    // A label over the plot must fit a phone.
    function folded(text) {
      const lines = [""];
      for (const word of text.split(" ")) {
        if ((lines.at(-1) + word).length > 38) lines.push("");
        lines[lines.length - 1] += word + " ";
      }
      return lines.map(plain).join("<br>");
    }

    function layout(names) {
      const style = getComputedStyle(box);
      const line = { showline: true, mirror: true, linecolor: style.color, linewidth: 0.5 };
      const axis = { ...line, showticklabels: false, zeroline: false, showgrid: false };
      const reach = 1.05 * data.reach;
      const moves = !still.matches && drawn === [view.value, colouring.value, only.value].join();
      return {
        xaxis: { ...axis, range: [-reach, reach] },
        yaxis: { ...axis, range: [-reach, reach], scaleanchor: "x" },
        font: { family: style.fontFamily, size: 13, color: style.color },
        hoverlabel: { font: { family: style.fontFamily, size: 13 }, align: "left" },
        legend: { orientation: "h", y: -0.03, itemsizing: "trace" },
        margin: { l: 8, r: 8, t: 8, b: 8 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        hovermode: "closest",
        dragmode: mouse.matches ? "zoom" : false,  // a finger that drags wants to scroll the page
        transition: { duration: moves && colouring.value !== "peak" ? 500 : 0, easing: "cubic-in-out" },
        uirevision: view.value,
      };
    }

    function draw() {
      const now = layer();
      const last = layers().at(-1).layer;
      const [names, category] = sorted();
      if (String(names) !== String([...only.options].slice(1).map((option) => option.value))) {
        const before = only.value;
        fill(only, [["", "all"], ...names.map((name) => [name, name])]);
        only.value = names.includes(before) ? before : "";
      }
      at.textContent = `Layer ${now.layer} of ${last}`;
      slider.setAttribute("aria-valuetext", at.textContent);
      const [count] = now.n_peaks;
      const text = `Layer ${now.layer} of ${last}, ${data.views[view.value].name}: ${count} peak${count === 1 ? "" : "s"}; `
        + `ARI with subject ${interval(now.ari_subject)}, with answer letter ${interval(now.ari_answer)}. `
        + `The plane holds ${Math.round(100 * now.explained[0])} % of the variance.`;
      status.textContent = text;
      plot.setAttribute("aria-label", `Map of ${data.questions.length} questions, coloured by `
        + `${colouring.selectedOptions[0].text}. ${text}`);
      Plotly.react(plot, traces(names, category), layout(names), { displayModeBar: false, responsive: true });
      drawn = [view.value, colouring.value, only.value].join();
    }

    function stop() {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
      status.setAttribute("aria-live", "polite");
    }

    function play() {
      if (timer !== null) return stop();
      if (Number(slider.value) === layers().length - 1) slider.value = 0;
      button.textContent = "Stop";
      status.setAttribute("aria-live", "off");  // read out when it stops, not at every step
      draw();
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        if (Number(slider.value) === layers().length - 1) stop();
        draw();
      }, 1000 * SECONDS_A_LAYER);
    }

    // Another model may have other layers: the slider stays at the same depth.
    function lengthen() {
      const depth = slider.value / (slider.max || 1);
      slider.max = layers().length - 1;
      slider.value = Math.round(depth * slider.max);
    }

    fill(view, data.views.map((one, i) => [i, one.name]));
    fill(only, [["", "all"]]);
    slider.max = layers().length - 1;
    slider.value = Math.round(0.3 * slider.max);  // a third of the depth, where the chapter looks first
    view.addEventListener("change", () => { lengthen(); draw(); });
    for (const select of [colouring, only]) select.addEventListener("change", draw);
    slider.addEventListener("input", () => { stop(); draw(); });
    button.addEventListener("click", play);
    const quiet = () => { stop(); button.hidden = still.matches; };
    still.addEventListener("change", quiet);
    new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    box.hidden = false;
    quiet();
    draw();
  }

  Promise.all([
    load("link", { rel: "stylesheet", href: new URL("landscape_map.css", here) }),
    load("script", { src: new URL("plotly/plotly-basic.min.js", here) }),
  ]).then(() => boxes.forEach(start));
})();
