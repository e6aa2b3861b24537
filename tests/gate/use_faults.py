"""Faults in the code that uses the instruments: what the gate's pages and their shared loops compute.

{file: [(what is wrong, the right code, the wrong code, the test file, which of its tests)]}.  A file is a module of
the package or, with a slash in front of its name, a notebook.
"""

# ruff: noqa: E501 - a table of code as it stands
PAGE = "gate/experiments"
FAULTS = {
    "/gate/modality_gap": [
        ("one draw for all pictures", "tokens.random(group, 1, seeds)", "tokens.random(group, 1, 0)", PAGE, "modality_gap"),
        ("the image's embeddings at every layer", "cosine_gap(text[:, layer], image[:, layer]", "cosine_gap(text[:, layer], image[:, 0]", PAGE, "modality_gap"),
        ("quartiles exchanged", '"quartile 1": gap.lower_quartile', '"quartile 1": gap.upper_quartile', PAGE, "modality_gap"),
        ("all captions of a scene", 'n_captions = 1 if experiment.source == "scenes"', 'n_captions = 1 if experiment.source == "paper"', PAGE, "modality_gap"),
    ],
    "/gate/cross_attention": [
        ("text before the image looks, too", 'text = batch.tokens.where("after")', 'text = batch.tokens.where("prompt")', PAGE, "cross_attention"),
        ("means of shares", "weights=mass, ", "", PAGE, "cross_attention"),
        ("the last image token counted twice", 'tokens.where("image") & ~last', 'tokens.where("image")', PAGE, "cross_attention"),
        ("one head under every name", "attention[:, layer, head]", "attention[:, layer, 0]", PAGE, "cross_attention"),
        ("the mean of the kinds for their sum", "mass = by_kind.sum(1)", "mass = by_kind.mean(1)", PAGE, "cross_attention"),
    ],
    "/gate/class_overlap": [
        ("a layer early", "residual[:, layer], labels", "residual[:, layer - 1], labels", PAGE, "class_overlap"),
        ("labels of other pictures", "np.array([picture.label for picture in pictures])", "np.array([picture.label for picture in pictures[::-1]])", PAGE, "class_overlap"),
    ],
    "/gate/knockout_table": [
        ("the begin token can be read", 'sources=("begin", "image", "special")', 'sources=("image", "special")', PAGE, "all_knockouts"),
        ("image tokens hidden from the text", 'sources=("image",), targets=("image",)', 'sources=("image",)', PAGE, "knockout_table"),
        ("answers held against other questions", "[picture.answers for picture in questions]", "[picture.answers for picture in questions[::-1]]", PAGE, "knockout_table"),
        ("only the first draw counts", "np.mean(scores, 0)", "scores[0]", PAGE, "knockout_table"),
        ("lost of the wrong whole", 'share_lost(accuracy["none"], accuracy[name]', 'share_lost(accuracy[name], accuracy["none"]', PAGE, "knockout_table"),
        ("one tokenizer for both", "references, tokenizer)", 'references, "ptb")', PAGE, "knockout_table"),
        ("the prompt's last token in the answer", '["input_ids"].shape[1] :]', '["input_ids"].shape[1] - 1 :]', PAGE, "knockout_table"),
        ("after the softmax, whatever `how` says", "seeds, knockout, experiment.how)", 'seeds, knockout, "zero")', PAGE, "knockout_table and mask"),
        ("the state of no knockout", "output_overlap(experiment, knockout)", 'output_overlap(experiment, KNOCKOUTS[\"none\"])', PAGE, "knockout_table"),
    ],
    "/gate/opening_the_gate": [
        ("lost of the wrong whole", 'scores["none"][0]', 'scores["block → text"][0]', PAGE, "knockout_table"),
        ("ten random tokens whatever is asked for", "score(experiment, knockout.draws(experiment))", "score(experiment, [knockout])", PAGE, "knockout_table"),
    ],
    "/gate/progressive_knockout": [
        ("one block early", "first=x)", "first=max(0, x - 1))", PAGE, "progressive"),
        ("one block late", "first=x)", "first=min(n_layers - 1, x + 1))", PAGE, "progressive"),
        ("the first block left out", "range(0, n_layers, layer_step)", "range(1, n_layers, layer_step)", PAGE, "progressive"),
        ("one knockout under both names", "replace(KNOCKOUTS[name]", 'replace(KNOCKOUTS["image → text"]', PAGE, "progressive"),
    ],
    "/gate/patching": [
        ("base and counterfactual exchanged", "patch(model, batch, other, steps)", "patch(model, other, batch, steps)", PAGE, "test_patching"),
        ("the two words exchanged", "words[:, 0], words[:, 1]", "words[:, 1], words[:, 0]", PAGE, "test_patching"),
        ("a layer early", "states.residual[:, layer]", "states.residual[:, layer - 1]", PAGE, "test_patching"),
        ("attention from the first block on", "states.attention_input, prompt.position, layer)", "states.attention_input, prompt.position, 0)", PAGE, "test_patching"),
        ("compared with the unpatched output", "measures.similarity(patched_logits, target)", 'measures.similarity(patched_logits, logits["none", 0])', PAGE, "test_patching"),
        ("before and after exchanged", 'measures.flips(logits["none", 0], patched_logits', 'measures.flips(patched_logits, logits["none", 0]', PAGE, "test_patching"),
        ("the state of another token", 'single_position(counterfactual.tokens.where("end"))', 'single_position(counterfactual.tokens.where("last image"))', PAGE, "test_patching"),
        ("pictures of one class for both", "for picture in pair.pictures[1]]", "for picture in pair.pictures[0][::-1]]", PAGE, "test_patching"),
    ],
    "gate/experiment": [
        ("before the softmax, whatever `how` says", "sources, targets, how, layers", 'sources, targets, "mask", layers', PAGE, "progressive and zero"),
        ("generated tokens read what is hidden", 'generated="after" in knockout.targets', "generated=False", PAGE, "knockout_table"),
        ("the last block left out", "range(knockout.first, model.n_layers)", "range(knockout.first, model.n_layers - 1)", PAGE, "progressive"),
        ("every block, whichever is the first", "range(knockout.first, model.n_layers)", "range(model.n_layers)", PAGE, "progressive"),
        ("one seed for all experiments", "digest([picture.key, self.seed])", "digest([picture.key])", PAGE, "what_is_drawn"),
        ("one draw, repeated", "[self.seed + seed for seed in seeds]", "seeds", PAGE, "knockout_table"),
        ("captions as short as answers", 'self.new_tokens[task == "captions"]', "self.new_tokens[0]", PAGE, "knockout_table"),
        ("the state before the last block", '["last text"][:, -1]', '["last text"][:, -2]', PAGE, "progressive"),
        ("other classes than asked for", "self.seed, n_classes=self.n_classes", "self.seed", PAGE, "pictures_of_a_task"),
        ("the same pictures for every seed", "n[task], self.seed, n_classes", "n[task], 0, n_classes", PAGE, "pictures_of_a_task"),
        ("the class asked for by the caption's prompt", '"classes": "<image> what is the largest thing?"', '"classes": "<image> describe it."', PAGE, "class_overlap"),
        ("the last prompt token for the end token", '"end": lambda tokens, seeds: tokens.where("end")', '"end": lambda tokens, seeds: tokens.where("last")', PAGE, "class_overlap"),
        ("the first seed for the mean", "over_seeds(seeds).assign", "seeds[0].assign", PAGE, "one_group"),
        ("pairs that begin alike stay", "!= first_token(model, pair.names[1])", "!= -1", PAGE, "begin_alike"),
    ],
    "gate/split": [
        ("what is filled in is seen", '"attention_mask": 0,', '"attention_mask": 1,', PAGE, "knockout_table"),
        ("the token's place is that in the prompt", "start, position - position.min(), keys_values", "start, position, keys_values", PAGE, "test_patching"),
        ("one cache for all runs", "own.layers = [copy.copy(layer) for layer in self.keys_values.layers]", "pass", PAGE, "all_knockouts"),
        ("no knockout in what was run beforehand", "if changed or self.keys_values is None:", "if self.keys_values is None:", PAGE, "knockout_table"),
        ("another picture's image", "model.network(**inputs,", 'model.network(**(inputs | {"pixel_values": inputs["pixel_values"].flip(0)}),', PAGE, "knockout_table"),
        ("the rest counted from the front", "n_tokens - start - behind + columns)", "position[:, None] - start + columns)", "gate/split", ""),
    ],
    "gate/pictures": [
        ("scenes of another seed", "scenes = _test_scenes(seed)", "scenes = _test_scenes(0)", "gate/pictures", "scenes"),
        ("the classes that were not drawn", 'scenes["label"].isin(labels)', '~scenes["label"].isin(labels)', "gate/pictures", "scenes"),
        ("rows by another seed", "random.Random(seed).sample(range(source.n_rows), n)", "random.Random(0).sample(range(source.n_rows), n)", "gate/pictures", "rows"),
    ],
    "gate/answers": [
        ("candidates not clipped", "min(ours[gram], theirs[gram]) * theirs[gram]", "ours[gram] * theirs[gram]", "gate/measures", "pycocoevalcap"),
        ("a phrase counted in every reference", "for group in counts for gram in {gram for texts in group for gram in texts}", "for group in counts for texts in group for gram in texts", "gate/measures", "pycocoevalcap"),
        ("one person is enough", "ENOUGH = 3", "ENOUGH = 1", "gate/measures", "scale"),
    ],
    "gate/measures": [
        ("pairs of one example", "np.fill_diagonal(cosines, np.inf)", "pass", "gate/measures", "quantiles"),
        ("one weight per picture", "1 / sizes[codes], n_bootstrap", "None, n_bootstrap", "gate/measures", "dadapys"),
        ("a tie counts as a flip", "(before > 0) & (after < 0)", "(before > 0) & (after <= 0)", "gate/measures", "flips_by_hand"),
    ],
}  # fmt: skip
