/* Peaks & Gates: filter and sort the scorecard. Without this file the tables are simply all there. */
(() => {
  "use strict";
  const board = document.querySelector(".pg-scorecards");
  if (!board) return;
  const rows = [...board.querySelectorAll("tbody tr")];
  const tables = [...board.querySelectorAll(".pg-scorecard")];
  const verdicts = ["holds", "pass", "mixed", "undecided", "not tested", "fails", "fail"];
  const natural = (row) => rows.indexOf(row);
  const orders = {
    "as in the papers": natural,
    "verdict, best first": (row) => verdicts.indexOf(row.dataset.verdict) * 1000 + natural(row),
    "verdict, worst first": (row) => -verdicts.indexOf(row.dataset.verdict) * 1000 + natural(row),
    "page of the book": (row) => Number(row.dataset.page) * 1000 + natural(row),
  };

  const labelled = (text, control) => {
    const label = document.createElement("label");
    label.append(text + " ", control);
    return label;
  };
  const select = (options) => {
    const element = document.createElement("select");
    element.append(...options.map((option) => new Option(option, option)));
    return element;
  };

  const verdict = select(["all verdicts", ...verdicts]);
  const part = select(["both papers", ...tables.map((table) => table.dataset.title)]);
  const order = select(Object.keys(orders));
  const words = document.createElement("input");
  words.type = "search";
  const shown = document.createElement("p");
  shown.setAttribute("role", "status"); // read out when it changes

  // The choice stands in the address, so that it can be sent: #verdict=fails&words=shots
  const controls = { verdict, part, order, words };
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (name in controls) controls[name].value = value;
  const remember = () => {
    const chosen = Object.entries(controls).filter(([, control]) => (control === words ? words.value : control.selectedIndex));
    const address = new URLSearchParams(chosen.map(([name, control]) => [name, control.value]));
    location.replace(`#${address}`);
  };

  function update() {
    const wanted = words.value.trim().toLowerCase();
    let count = 0;
    for (const table of tables) {
      const own = rows.filter((row) => table.contains(row));
      let visible = 0;
      for (const row of own) {
        const fits =
          (verdict.selectedIndex === 0 || row.dataset.verdict === verdict.value) &&
          (part.selectedIndex === 0 || table.dataset.title === part.value) &&
          row.textContent.toLowerCase().includes(wanted);
        row.hidden = !fits;
        visible += fits;
      }
      const key = orders[order.value];
      const body = table.querySelector("tbody");
      body.append(...own.sort((a, b) => key(a) - key(b)));
      table.hidden = visible === 0;
      count += visible;
    }
    shown.textContent = `${count} of ${rows.length} claims shown.`;
  }

  const form = document.createElement("form");
  form.className = "pg-scorecard-controls";
  form.setAttribute("aria-label", "Filter and sort the claims");
  form.append(labelled("Show", verdict), labelled("of", part), labelled("in the order", order), labelled("with the words", words));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => (update(), remember()));
  board.querySelector(".pg-scorecard-filter").append(form, shown);
  update();
})();
