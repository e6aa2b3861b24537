// The theme's arrows that unfold a part of the contents have no name; a screen reader gets one here.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll(".bd-sidebar-primary details > summary")) {
    const page = arrow.closest("li").querySelector("a");
    arrow.setAttribute("aria-label", `Pages that belong to ${page.textContent.trim()}`);
  }
});
