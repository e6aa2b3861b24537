// Explains a word of the glossary where it first stands on a page: on hover and on focus, closed by Escape.
// The words are in glossary_terms.js, which the site's builder writes from book/glossary.md.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector("article.bd-article");
  const terms = window.PG_TERMS ?? [];
  if (!article || !terms.length || article.querySelector("dl.glossary")) return;

  const tip = document.createElement("div");
  tip.id = "pg-term-tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  let closing = null;

  function open(link) {
    clearTimeout(closing);
    tip.textContent = link.dataset.says;
    tip.hidden = false;
    link.setAttribute("aria-describedby", tip.id);
    const box = link.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left) + scrollX}px`;
    tip.style.top = `${box.bottom + scrollY + 4}px`;
  }

  function close() {
    clearTimeout(closing);
    tip.hidden = true;
    document.querySelectorAll("a.pg-term[aria-describedby]").forEach((link) => link.removeAttribute("aria-describedby"));
  }

  // The mouse may go over to the explanation, for example to select it.
  const soon = () => { closing = setTimeout(close, 300); };
  tip.addEventListener("mouseenter", () => clearTimeout(closing));
  tip.addEventListener("mouseleave", soon);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });

  function linked(term) {
    const link = document.createElement("a");
    link.className = "pg-term";
    link.href = `${document.documentElement.dataset.content_root}book/glossary.html#${term.anchor}`;
    link.dataset.says = term.says;
    link.addEventListener("mouseenter", () => open(link));
    link.addEventListener("focus", () => open(link));
    link.addEventListener("mouseleave", soon);
    link.addEventListener("blur", close);
    return link;
  }

  // Running text only: no headings, links, code, formulas, figures.
  const OUTSIDE = "a, code, pre, h1, h2, h3, .math, .pg-figure, .pg-map, .pg-run-box, .pg-scorecards, .pg-claim, button";
  const places = [];
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (parent.closest("p, li, dd, td") && !parent.closest(OUTSIDE)) places.push(walker.currentNode);
  }
  for (const term of terms) {  // longest first, so that "core fraction" is not taken for "core"
    const escaped = term.name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const word = new RegExp(`(?<![\\w-])${escaped}s?(?![\\w-])`, term.name === term.name.toLowerCase() ? "i" : "");
    for (let i = 0; i < places.length; i += 1) {
      const found = word.exec(places[i].data);
      if (!found) continue;
      const middle = places[i].splitText(found.index);
      const rest = middle.splitText(found[0].length);
      const link = linked(term);
      middle.replaceWith(link);
      link.append(middle);
      places.splice(i + 1, 0, rest);
      break;
    }
  }
});
