// Turns the pictures of a .pg-steps figure into one with a slider. Without this script all of them are on the page.
"use strict";
for (const figure of document.querySelectorAll(".pg-steps:not([data-ready])")) {
  const steps = [...figure.querySelectorAll(".pg-step")];
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const SECONDS_A_STEP = 1.5;
  const controls = document.createElement("div");
  controls.className = "pg-steps-controls";
  controls.innerHTML = '<label><span></span> <input type="range" min="0" value="0"></label>'
    + '<button type="button">Play</button>';
  const [name, slider, button] = ["span", "input", "button"].map((part) => controls.querySelector(part));
  slider.max = steps.length - 1;
  let timer = null;

  function show() {
    steps.forEach((step, i) => { step.hidden = i !== Number(slider.value); });
    name.textContent = steps[slider.value].dataset.label;
    slider.setAttribute("aria-valuetext", steps[slider.value].querySelector("p").textContent);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  }

  button.addEventListener("click", () => {
    if (timer !== null) { stop(); return; }
    if (Number(slider.value) === steps.length - 1) slider.value = 0;
    button.textContent = "Stop";
    show();
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      if (Number(slider.value) === steps.length - 1) stop();
      show();
    }, 1000 * SECONDS_A_STEP);
  });
  slider.addEventListener("input", () => { stop(); show(); });
  button.hidden = still.matches;
  still.addEventListener("change", () => { stop(); button.hidden = still.matches; });
  figure.dataset.ready = "";
  figure.prepend(controls);
  show();
}
