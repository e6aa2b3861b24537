/* Peaks & Gates: what a search finds first. Sphinx's own weights, but for pages that are for maintainers: they come last. */
var Scorer = {
  score: ([page, , , , score]) => (/^book\/(api\/|extend|scale|changelog)/.test(page) ? score - 100 : score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
