// A mini of the book, run in the page: a Chameleon of six blocks in plain JavaScript, and the controls to cut into it.
// Weights and scenes come as scripts from mini/, beside this file, which also works where a page is opened from a disk.
"use strict";
(() => {
  const boxes = document.querySelectorAll(".pg-mini");
  if (!boxes.length) return;
  const here = document.currentScript.src;

  // ---- the prompt: <s> <begin> 64 image tokens <end>, then the text

  const N_IMAGE = 64;
  const [START, BEGIN, IMAGE, END, TEXT] = [0, 1, 2, 2 + N_IMAGE, 3 + N_IMAGE];  // places in a prompt
  const LONGEST = 192;  // tokens of a prompt and its answer
  const MOST_WORDS = 60;  // of an answer, as on the book's pages

  let vocabulary = null;  // the words by id; ids of image tokens follow, which the head never writes
  const idOf = (word) => vocabulary.indexOf(vocabulary.includes(word) ? word : "<unk>");
  const wordsOf = (text) => text.toLowerCase().match(/[a-z]+|[^a-z ]/g) || [];

  // ---- the forward pass; a matrix is a Float32Array of rows, T of them, one per token

  // x (T, in) times the transpose of w (out, in): (T, out).  Four sums side by side, nearly twice as fast as one.
  function linear(x, w, nIn) {
    const nOut = w.length / nIn;
    const y = new Float32Array(x.length / nIn * nOut);
    for (let t = 0; t * nIn < x.length; t++) {
      for (let o = 0; o < nOut; o++) {
        let p = 0, q = 0, r = 0, s = 0;
        for (let a = t * nIn, b = o * nIn; a < (t + 1) * nIn; a += 4, b += 4) {
          p += x[a] * w[b];
          q += x[a + 1] * w[b + 1];
          r += x[a + 2] * w[b + 2];
          s += x[a + 3] * w[b + 3];
        }
        y[t * nOut + o] = p + q + r + s;
      }
    }
    return y;
  }

  // Each row divided by its root mean square, times a weight for each column (RMSNorm).
  function norm(x, weight, eps) {
    const y = new Float32Array(x.length);
    const width = weight.length;
    for (let a = 0; a < x.length; a += width) {
      let squares = 0;
      for (let i = 0; i < width; i++) squares += x[a + i] ** 2;
      const scale = 1 / Math.sqrt(squares / width + eps);
      for (let i = 0; i < width; i++) y[a + i] = x[a + i] * scale * weight[i];
    }
    return y;
  }

  // Queries or keys, each head for itself: mean 0, variance 1, then the head's own weight and bias (LayerNorm).
  function headNorm(x, weight, bias, size) {
    const width = weight.length;  // of all heads
    for (let a = 0; a < x.length; a += size) {
      let [mean, square] = [0, 0];
      for (let i = a; i < a + size; i++) mean += x[i] / size;
      for (let i = a; i < a + size; i++) square += (x[i] - mean) ** 2 / size;
      for (let i = a; i < a + size; i++) x[i] = (x[i] - mean) / Math.sqrt(square + 1e-5) * weight[i % width] + bias[i % width];
    }
    return x;
  }

  // Says where a token stands: turns the pairs (i, i + size / 2) of each head by an angle that grows with its place (RoPE).
  function rotate(x, first, width, size, theta) {
    const half = size / 2;
    for (let a = 0; a < x.length; a += size) {
      const place = first + Math.floor(a / width);
      for (let i = 0; i < half; i++) {
        const angle = place * theta ** (-i / half);
        const [u, v, cos, sin] = [x[a + i], x[a + half + i], Math.cos(angle), Math.sin(angle)];
        x[a + i] = u * cos - v * sin;
        x[a + half + i] = v * cos + u * sin;
      }
    }
    return x;
  }

  function softmax(scores) {
    const highest = Math.max(...scores);
    const powers = scores.map((score) => Math.exp(score - highest));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / sum);
  }

  // Who may read whom. The mask is part of a gated model: its text reads the image through the end token alone.
  const mayRead = (model, query, key) =>
    key <= query && !(model.wiring === "gated" && query > END && key >= BEGIN && key < END);
  // The book's knockout: after the softmax, the text's weights on hidden tokens become 0. No other weight grows.
  const isCut = (hidden, query, key) => query > END && hidden.has(key);

  // Every head of every query mixes the values of the tokens that it reads. Returns what was mixed, (T, width), and how
  // the last token weighs each token, mean of the heads: `read`, and `lost` on those hidden from it.
  function attend(model, queries, keys, values, first, hidden) {
    const { width, heads } = model;
    const size = width / heads;
    const mixed = new Float32Array(queries.length);
    const n = queries.length / width;
    const [read, lost] = [new Float32Array(first + n), new Float32Array(first + n)];
    for (let t = 0; t < n; t++) {
      const readable = [...Array(first + n).keys()].filter((key) => mayRead(model, first + t, key));
      for (let head = 0; head < heads; head++) {
        const at = t * width + head * size;
        const weights = softmax(readable.map((key) => {
          let score = 0;
          for (let i = 0; i < size; i++) score += queries[at + i] * keys[key * width + head * size + i];
          return score / Math.sqrt(size);
        }));
        readable.forEach((key, j) => {
          const cut = isCut(hidden, first + t, key);
          if (t === n - 1) (cut ? lost : read)[key] += weights[j] / heads;
          if (cut) return;
          for (let i = 0; i < size; i++) mixed[at + i] += weights[j] * values[key * width + head * size + i];
        });
      }
    }
    return { mixed, read, lost };
  }

  // Each token for itself: down(silu(gate(x)) * up(x)).
  function mlp(x, w, width) {
    const [gate, up] = [linear(x, w("mlp.gate_proj.weight"), width), linear(x, w("mlp.up_proj.weight"), width)];
    const inner = gate.map((value, i) => value / (1 + Math.exp(-value)) * up[i]);
    return linear(inner, w("mlp.down_proj.weight"), w("mlp.gate_proj.weight").length / width);
  }

  const added = (x, y) => x.map((value, i) => value + y[i]);

  // Reads the tokens `ids` behind those in the cache. steer: {layer, state}, what that block is given of the end token.
  // Returns the residual stream before each block and after the last, the probability of every word to come next, and
  // the attention of the last token in each block.
  function forward(model, cache, ids, { hidden = new Set(), steer = null } = {}) {
    const { width, heads, eps, theta, weights } = model;
    const [first, size] = [cache.length, width / heads];
    const embedding = weights["embed_tokens.weight"];
    let x = new Float32Array(ids.length * width);
    ids.forEach((id, t) => x.set(embedding.subarray(id * width, (id + 1) * width), t * width));
    const [residual, attention] = [[], []];
    for (let layer = 0; layer < model.layers; layer++) {
      const w = (name) => weights[`layers.${layer}.${name}`];
      if (steer && steer.layer === layer && first <= END) x.set(steer.state, (END - first) * width);
      residual.push(x);
      const read = norm(x, w("input_layernorm.weight"), eps);
      const [q, k, v] = ["q", "k", "v"].map((name) => linear(read, w(`self_attn.${name}_proj.weight`), width));
      const placed = (y, name) => rotate(
        headNorm(y, w(`self_attn.${name}_norm.weight`), w(`self_attn.${name}_norm.bias`), size), first, width, size, theta);
      cache.keys[layer].set(placed(k, "k"), first * width);
      cache.values[layer].set(v, first * width);
      const looked = attend(model, placed(q, "q"), cache.keys[layer], cache.values[layer], first, hidden);
      attention.push(looked);
      x = added(x, linear(looked.mixed, w("self_attn.o_proj.weight"), width));
      x = added(x, mlp(norm(x, w("post_attention_layernorm.weight"), eps), w, width));
    }
    residual.push(x);
    cache.length += ids.length;
    // The head: how well the last token's state agrees with each word's embedding.
    const last = norm(x.subarray(x.length - width), weights["norm.weight"], eps);
    const probabilities = softmax(linear(last, embedding.subarray(0, vocabulary.length * width), width));
    return { residual, attention, probabilities };
  }

  // ---- answers

  const newCache = ({ layers, width }) => {
    const empty = () => Array.from({ length: layers }, () => new Float32Array(LONGEST * width));
    return { length: 0, keys: empty(), values: empty() };
  };

  // The cache of all that stands before the end token. Nothing that is cut or steered changes it, so it is made once.
  function seen(model, scene) {
    if (!model.seen.has(scene)) {
      const cache = newCache(model);
      forward(model, cache, [idOf("<s>"), idOf("<begin>"), ...pgMini.scenes[scene].codes]);
      model.seen.set(scene, cache);
    }
    const cache = model.seen.get(scene);
    cache.length = END;  // what an earlier answer left behind is written over
    return cache;
  }

  // The end token's state before each block: (layers + 1) of (width,).
  const endStates = (model, scene) => forward(model, seen(model, scene), [idOf("<end>")]).residual;

  // own + strength * (other - own), for one block.
  function steered(model, scene, { towards, layer, strength }) {
    const [own, other] = [scene, towards].map((which) => endStates(model, which)[layer]);
    return { layer, state: own.map((value, i) => value + strength * (other[i] - value)) };
  }

  // The answer, the likeliest word at every step. steer: {towards, layer, strength}. Returns its words, each with the
  // probabilities of all words at its place and the attention of the token that it was written from.
  function answer(name, { scene, text, hidden = [], steer = null }) {
    const model = pgMini.models[name];
    const changes = { hidden: new Set(hidden), steer: steer && steered(model, scene, steer) };
    const cache = seen(model, scene);
    let step = forward(model, cache, ["<end>", ...wordsOf(text)].map(idOf), changes);
    const words = [];
    while (words.length < MOST_WORDS && cache.length < LONGEST) {
      const best = step.probabilities.reduce((top, p, id, all) => (p > all[top] && vocabulary[id] !== "<image>" ? id : top), 0);
      words.push({ word: vocabulary[best], probabilities: step.probabilities, attention: step.attention });
      if (vocabulary[best] === "</s>") break;
      step = forward(model, cache, [best], { hidden: changes.hidden });
    }
    return words;
  }

  // ---- weights and scenes

  // Base64 of bfloat16, which is the upper half of a float32.
  function floats(text) {
    const bytes = atob(text);
    const halves = new Uint16Array(bytes.length);  // a 0 and a bfloat16 in turn
    for (let i = 0; i < bytes.length; i += 2) halves[i + 1] = bytes.charCodeAt(i) | bytes.charCodeAt(i + 1) << 8;
    return new Float32Array(halves.buffer);
  }

  const loading = {};
  const load = (file) => loading[file] ||= new Promise((done, failed) => {
    const onerror = () => { delete loading[file]; failed(new Error(`${file} is not there`)); };
    document.head.append(Object.assign(document.createElement("script"), { src: new URL(`mini/${file}.js`, here), onload: done, onerror }));
  });

  globalThis.pgMini = {
    models: {}, scenes: [], answer,
    ready: (name) => Promise.all([load("scenes"), load(name)]),
    // Called by the scripts in mini/.
    addScenes(words, scenes) { vocabulary = words; pgMini.scenes = scenes; },
    addModel(name, settings, places, text) {
      const all = floats(text);
      const weights = Object.fromEntries(Object.entries(places).map(([key, [from, to]]) => [key, all.subarray(from, to)]));
      pgMini.models[name] = { ...settings, weights, seen: new Map() };
    },
  };

  // ---- what a reader sees

  const MODELS = {
    gated: "A mask lets its text read the image through the end-of-image token alone.",
    native: "Trained on images and text, without any mask.",
    reopened: "Was gated; then went on learning without the mask, the end-of-image token hidden.",
    penalised: "No mask; attention from text to image tokens cost something while it learned.",
  };
  const TASKS = {
    class: ["what is the largest thing?", (scene) => scene.label],
    own: [null, (scene) => scene.answer],  // the question that the book asks about this scene
    caption: ["describe it.", () => null],
    words: [null, () => null],
  };
  const SHOWN = 5;  // words with a bar
  const two = (number) => number.toFixed(2).replace(/^0/, "");  // as on the book's pages
  const nameOf = (word) => (word === "</s>" ? "(stop)" : word);
  const written = (words) => words.join(" ").replace(/ (?=[.,?])/g, "");
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  const FORM = `
    <p class="pg-mini-status" role="status" data-role="status"></p>
    <button type="button" class="pg-mini-main" data-role="gate"></button>
    <div class="pg-mini-columns">
      <div>
        <div class="pg-mini-picture"><img alt="" data-role="picture"><div role="group" data-role="grid"
          aria-label="Image tokens: 8 rows of 8, arrow keys move between them; a checked one is hidden from the text"></div></div>
        <p class="pg-mini-note">The picture under its 64 image tokens. Check one to hide it.</p>
      </div>
      <div class="pg-mini-choices">
        <label>Model <select data-role="model"></select></label>
        <p class="pg-mini-note" data-role="about"></p>
        <label>Scene <select data-role="scene"></select></label>
        <label>Question <select data-role="task">
          <option value="class">what is the largest thing?</option><option value="own"></option>
          <option value="caption">describe it.</option><option value="words">in your own words</option></select></label>
        <label data-role="typed" hidden>Your question <input type="text" maxlength="80" spellcheck="false"></label>
        <p class="pg-mini-note" data-role="unknown"></p>
      </div>
    </div>
    <fieldset><legend>The prompt: check what to hide from the text</legend><div class="pg-mini-prompt" data-role="prompt"></div></fieldset>
    <div class="pg-mini-columns">
      <section><p class="pg-mini-title">The answer</p><fieldset class="pg-mini-words" data-role="words"><legend>Bars for the word</legend></fieldset>
        <ol class="pg-mini-bars" data-role="answer" aria-label="Probabilities of words"></ol></section>
      <section><p class="pg-mini-title" data-role="looks"></p>
        <label>Layer <select data-role="layer"></select></label>
        <ol class="pg-mini-bars" data-role="attention" aria-label="Shares of attention"></ol></section>
    </div>
    <fieldset class="pg-mini-steer"><legend>Steer the end-of-image token</legend>
      <div><img alt="" data-role="goal"><label>towards scene <select data-role="towards"></select></label>
      <label>at layer <select data-role="at"></select></label></div>
      <label><span>Strength</span> <input type="range" aria-label="Strength" min="0" max="2" step="0.05" value="0" data-role="strength"> <span class="pg-mini-amount" data-role="amount"></span></label>
      <p class="pg-mini-note" data-role="hint"></p>
    </fieldset>`;

  function start(box) {
    box.innerHTML = FORM;
    const part = (role) => box.querySelector(`[data-role="${role}"]`);
    const [status, gate, picture, grid, prompt, task, strength] =
      ["status", "gate", "picture", "grid", "prompt", "task", "strength"].map(part);
    const [model, scene, towards, at, layer] = ["model", "scene", "towards", "at", "layer"].map(part);
    const typed = part("typed").querySelector("input");
    const hidden = new Set([END]);  // places in the prompt
    let chosen = 0;  // the word of the answer that the bars are about
    let words = [];

    const shownScene = () => pgMini.scenes[scene.value];
    const question = () => ({ own: shownScene().question, words: typed.value }[task.value] ?? TASKS[task.value][0]);
    const fill = (select, options) => select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));

    // One row for each bar: a name, the bar, a number. note: said behind the name.
    function bars(list, rows) {
      list.replaceChildren(...rows.map(([name, share, note]) => {
        const bar = element("span", { className: "pg-mini-bar" }, element("span"));
        bar.firstChild.style.width = `${100 * share}%`;
        bar.setAttribute("aria-hidden", "true");
        return element("li", {}, element("span", { className: "pg-mini-name" }, name, note ? element("small", {}, ` ${note}`) : ""), bar,
          element("span", { className: "pg-mini-number" }, two(share)));
      }));
    }

    // A checkbox that hides places of the prompt from the text.
    function hider(places, name) {
      const input = element("input", { type: "checkbox" });
      input.setAttribute("aria-label", `hide ${name}`);
      input.places = places;
      input.addEventListener("change", () => {
        for (const place of places) hidden[input.checked ? "add" : "delete"](place);
        run();
      });
      return input;
    }

    function drawPrompt() {
      const focused = [...prompt.querySelectorAll("input")].indexOf(document.activeElement);
      const image = Array.from({ length: N_IMAGE }, (_, i) => IMAGE + i);
      const tokens = [[[START], "start", "the start token"], [[BEGIN], "begin of image", "the begin-of-image token"],
        [image, "64 image tokens", "all image tokens"], [[END], "end of image", "the end-of-image token"],
        ...wordsOf(question()).map((word, i) => [[TEXT + i], word, `the word ${word}`])];
      prompt.replaceChildren(...tokens.map(([places, text, name]) =>
        element("label", { className: places[0] === END ? "pg-mini-end" : "" }, hider(places, name), ` ${text}`)));
      prompt.querySelectorAll("input")[focused]?.focus();
      const unknown = wordsOf(question()).filter((word) => !vocabulary.includes(word));
      part("unknown").textContent = unknown.length ? `The mini does not know: ${[...new Set(unknown)].join(", ")}.` : "";
    }

    // Checkboxes follow what is hidden; a box for several tokens is in between if some of them are.
    function check() {
      for (const input of box.querySelectorAll("[data-role=prompt] input, [data-role=grid] input")) {
        const count = input.places.filter((place) => hidden.has(place)).length;
        input.checked = count === input.places.length;
        input.indeterminate = count > 0 && !input.checked;
      }
      gate.textContent = `${hidden.has(END) ? "Show" : "Hide"} the end-of-image token`;
    }

    function hiddenInWords() {
      const nImage = [...hidden].filter((place) => place >= IMAGE && place < END).length;
      const names = [hidden.has(END) && "the end-of-image token", hidden.has(BEGIN) && "the begin-of-image token",
        nImage && (nImage === N_IMAGE ? "all image tokens" : `${nImage} image token${nImage > 1 ? "s" : ""}`),
        hidden.has(START) && "the start token", [...hidden].some((place) => place > END) && "words"].filter(Boolean);
      return names.length ? `Hidden from the text: ${names.join(", ")}.` : "Nothing is hidden.";
    }

    // Everything again: the answer takes some hundredths of a second.
    function run() {
      const steer = Number(strength.value) && { towards: Number(towards.value), layer: Number(at.value), strength: Number(strength.value) };
      words = answer(model.value, { scene: Number(scene.value), text: question(), hidden: [...hidden], steer: steer || null });
      const spoken = words.filter(({ word }) => word !== "</s>");
      const probability = spoken.reduce((product, { word, probabilities }) => product * probabilities[vocabulary.indexOf(word)], 1);
      const text = written(spoken.map(({ word }) => word));
      const right = TASKS[task.value][1](shownScene());
      const verdict = right === null ? "" : text === right ? " That is right." : ` Wrong: it is “${right}”.`;
      const moved = steer ? ` Its end-of-image token is moved towards “${pgMini.scenes[steer.towards].label}”, strength ${two(steer.strength)}.` : "";
      status.replaceChildren(`The ${model.value} mini answers `, element("strong", {}, `“${text}”`), ` (probability ${two(probability)}).`,
        element("strong", {}, verdict), ` ${hiddenInWords()}${moved}`);
      chosen = Math.min(chosen, Math.max(0, spoken.length - 1));
      part("words").hidden = spoken.length < 2;
      part("words").replaceChildren(part("words").firstElementChild, ...spoken.map(({ word }, i) => {
        const input = element("input", { type: "radio", name: "pg-mini-word", checked: i === chosen });
        input.addEventListener("change", () => { chosen = i; drawBars(); });
        return element("label", {}, input, ` ${word}`);
      }));
      part("amount").textContent = strength.value === "0" ? "0: left alone" : two(Number(strength.value)) + (strength.value === "1" ? ": replaced" : "");
      strength.setAttribute("aria-valuetext", part("amount").textContent);
      const hint = hidden.has(END) ? "The token is hidden, so the text cannot notice that it was moved." : `The answer: “${text}”`;
      part("hint").textContent = steer ? hint : "";
      check();
      drawBars();
    }

    // Of the chosen word: the likeliest words at its place, and the attention of the token that it was written from.
    function drawBars() {
      const { probabilities, attention } = words[chosen];
      const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, SHOWN);
      const right = (TASKS[task.value][1](shownScene()) || "").split(" ");
      bars(part("answer"), order.map((id) => [nameOf(vocabulary[id]), probabilities[id],
        vocabulary[id] === right[chosen] && "✓ right"]));
      part("looks").textContent = `Attention of the token before “${nameOf(words[chosen].word)}”`;
      const blocks = layer.value === "mean" ? attention : [attention[layer.value]];
      const sum = (kind, from, to) => blocks.reduce((total, block) =>
        total + block[kind].slice(from, to).reduce((a, b) => a + b, 0), 0) / blocks.length;
      bars(part("attention"), [["image tokens", sum("read", BEGIN, END)], ["end of image", sum("read", END, TEXT)],
        ["text and start", sum("read", START, BEGIN) + sum("read", TEXT)], ["hidden: lost", sum("lost", 0)]]);
    }

    // Another scene, or another question.
    function show() {
      const { png, label, question: own, caption } = shownScene();
      Object.assign(picture, { src: `data:image/png;base64,${png}`, alt: `Scene of class ${label}: ${caption}` });
      task.querySelector("[value=own]").textContent = own;
      const goal = pgMini.scenes[towards.value];
      Object.assign(part("goal"), { src: `data:image/png;base64,${goal.png}`, alt: `Scene of class ${goal.label}` });
      part("typed").hidden = task.value !== "words";
      for (const place of [...hidden]) if (place > END) hidden.delete(place);
      chosen = 0;
      drawPrompt();
      run();
    }

    async function change() {
      const name = model.value;
      if (!pgMini.models[name]) status.textContent = `Loading the ${name} mini, 3.4 MB …`;
      try {
        await pgMini.ready(name);
        part("about").textContent = MODELS[name];
        run();
      } catch (error) {
        status.textContent = `The ${name} mini could not be loaded: ${error.message}. Choose it again to retry.`;
      }
    }

    fill(model, Object.keys(MODELS).map((name) => [name, name]));
    part("about").textContent = MODELS[model.value];
    fill(scene, pgMini.scenes.map(({ label }, i) => [i, `${i + 1}: ${label}`]));
    fill(towards, pgMini.scenes.map(({ label }, i) => [i, `${i + 1}: ${label}`]));
    towards.value = 11;
    const { layers } = pgMini.models[model.value];
    fill(at, Array.from({ length: layers - 1 }, (_, i) => [i + 1, i + 1]));  // in layer 0 the token knows nothing yet
    at.value = layers - 1;  // where the page on steering moves gated
    fill(layer, [["mean", "mean of all"], ...Array.from({ length: layers }, (_, i) => [i, i])]);
    grid.append(...Array.from({ length: N_IMAGE }, (_, i) =>
      hider([IMAGE + i], `the image token in row ${Math.floor(i / 8) + 1}, column ${(i % 8) + 1}`)));
    // One stop of the tab key; arrows move inside.
    const cells = [...grid.children];
    const focus = (i) => cells.forEach((cell, j) => { cell.tabIndex = i === j ? 0 : -1; });
    focus(0);
    grid.addEventListener("focusin", (event) => focus(cells.indexOf(event.target)));
    grid.addEventListener("keydown", (event) => {
      const i = cells.indexOf(event.target);
      const to = { ArrowLeft: i % 8 ? i - 1 : i, ArrowRight: i % 8 < 7 ? i + 1 : i, ArrowUp: i - 8, ArrowDown: i + 8 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      cells[to]?.focus();
    });

    gate.addEventListener("click", () => { hidden[hidden.has(END) ? "delete" : "add"](END); run(); });
    model.addEventListener("change", change);
    for (const control of [scene, task, towards]) control.addEventListener("change", show);
    typed.addEventListener("change", show);
    for (const control of [at, strength]) control.addEventListener("input", run);
    layer.addEventListener("change", drawBars);
    show();
  }

  document.head.append(element("link", { rel: "stylesheet", href: new URL("mini.css", here) }));
  for (const box of boxes) {
    const first = Object.keys(MODELS)[0];
    const button = element("button", { type: "button", className: "pg-mini-main" }, "Run the gated mini in this page (3.5 MB)");
    const status = element("p", { className: "pg-mini-note" });
    status.setAttribute("role", "status");
    button.addEventListener("click", async () => {
      status.textContent = "Loading …";
      try {
        await pgMini.ready(first);
        start(box);
        box.querySelector("[data-role=gate]").focus();
      } catch (error) {
        status.textContent = `It could not be loaded: ${error.message}.`;
      }
    });
    box.prepend(button, status);
  }
})();
