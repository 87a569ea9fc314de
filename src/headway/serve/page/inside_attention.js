"use strict";
// Attention of any layer and head: what a head does, a row of words, and a map.

const MEAN_OF_HEADS = -1;

// A share in a sentence: its sign is not separated from the number.
const unbroken = (share) => percent(share).replace(" ", "\u00a0");

// The maps of an answer, with names for people: {name, title, weights [H][T][S], rows, columns}; causal: no token looks
// at a later one.
function attentionMaps({ attention, tokens }) {
  const counts = { encoder: 0, cross: 0, own: 0 };
  const source = attention.source.map((text) => ({ text }));
  const target = tokens.length === attention.symbols.length ? tokens : attention.symbols.map((text) => ({ text }));
  return Object.entries(attention.maps).map(([name, weights]) => {
    const kind = attention.across.includes(name) ? "cross" : source.length && name.startsWith("encoder") ? "encoder" : "own";
    const number = ++counts[kind];
    const title = { own: `Layer ${number}`, encoder: `Source, layer ${number}`, cross: `Target looks at source, layer ${number}` }[kind];
    const causal = kind !== "cross" && weights.every((head) => head.every((row, t) => row.every((weight, s) => s <= t || weight === 0)));
    return { name, kind, title, weights, causal, rows: kind === "encoder" ? source : target, columns: kind === "own" ? target : source };
  });
}

const headWeights = (map, head) => head === MEAN_OF_HEADS
  ? map.weights[0].map((row, t) => row.map((_, s) => map.weights.reduce((sum, weights) => sum + weights[t][s], 0) / map.weights.length))
  : map.weights[head];

// What a head mostly does, found in its weights: {rule, label, text, strength, clearest}. Shares are means over the tokens
// that a rule applies to, next to the shares that these would have if attention were even; `clearest` is the token that
// follows the rule most. `rule` is null without one.
function headHint(weights, { rows, columns, kind, causal }) {
  const across = kind === "cross", none = { share: 0, byChance: 0 };
  const follows = (where, least = 1) => {
    const found = weights.map((row, t) => [where(t).filter((s) => s >= 0 && s < row.length), row, t]).filter(([places]) => places.length)
      .map(([places, row, t]) => ({ t, share: places.reduce((sum, s) => sum + row[s], 0), byChance: places.length / (causal ? t + 1 : row.length) }));
    if (found.length < least) return none;
    const mean = (key) => found.reduce((sum, entry) => sum + entry[key], 0) / found.length, gain = ({ t, share, byChance }) => share - byChance + (isWord(rows[t]) ? 0.1 : 0);
    return { share: mean("share"), byChance: mean("byChance"), clearest: found.reduce((one, other) => gain(other) > gain(one) ? other : one).t };
  };
  const sameAs = (t, step) => across ? [] : columns.flatMap((token, s) => s !== t && token.text === rows[t].text && (!causal || s + step < t) && s + step !== t ? [s + step] : []);
  const rules = [
    ["before", "looks at the token before", across || rows.length < 3 ? none : follows((t) => [t - 1])],
    ["first", `looks at the first token${across ? " of the source" : ""}`, follows((t) => t > 1 || across || (t && rows.length < 3) ? [0] : [])],
    ["itself", "looks at the token itself", across ? none : follows((t) => t ? [t] : [])],
    ["after", "looks at the token after", causal || across ? none : follows((t) => [t + 1])],
    ["same word", "looks at the same token elsewhere in the text", follows((t) => sameAs(t, 0), 2)],
    ["what followed", "looks at what followed the same token earlier", follows((t) => sameAs(t, 1), 2)],
    ["last", "looks at the last token of the source", across ? follows(() => [columns.length - 1]) : none],
  ];
  const evenness = weights.map((row, t) => {
    const seen = causal ? t + 1 : row.length;
    return seen < 2 ? null : -row.reduce((sum, weight) => sum + (weight > 0 ? weight * Math.log(weight) : 0), 0) / Math.log(seen);
  }).filter((value) => value !== null);
  const even = evenness.reduce((sum, value) => sum + value, 0) / Math.max(1, evenness.length);
  const [label, text, { share, byChance, clearest }] = rules.reduce((one, other) => other[2].share > one[2].share ? other : one);
  const figures = (rule) => `${unbroken(rule.share)} of its attention on average, and ${unbroken(rule.byChance)} if it looked everywhere alike`;
  if (evenness.length && even > 0.92) return { rule: null, label: "even", text: "spreads its attention nearly evenly over all tokens that it sees", strength: 0 };
  // The first token is where heads rest, so another habit is shown first.
  if (share >= 0.4 && share > 1.5 * byChance) return { rule: [label, text], label: `${label} ${percent(share)}`, text: `mostly ${text}: ${figures({ share, byChance })}`, strength: label === "first" ? share / 2 : share, clearest };
  const nearby = across ? none : follows((t) => t > 3 ? [t - 1, t - 2, t - 3] : []);
  if (nearby.share >= 0.4 && nearby.share > 1.5 * nearby.byChance) {
    const where = "looks at the three tokens before";
    return { rule: ["nearby", where], label: `nearby ${percent(nearby.share)}`, text: `mostly ${where}: ${figures(nearby)}`, strength: nearby.share / 2, clearest: nearby.clearest };
  }
  if (share >= 0.2 && share > 2 * byChance) return { rule: [label, text], label: `partly ${label} ${percent(share)}`, text: `partly ${text}: ${figures({ share, byChance })}`, strength: 0 };
  return { rule: null, label: "mixed", text: "follows no simple rule here: where it looks depends on the words", strength: 0 };
}

// A row of tokens, coloured by how strongly one of them looks at each; `choose(index)` makes the tokens buttons. Tokens
// after the reader of a causal model are not yet written when it looks.
function attentionStrip(tokens, weights, reader, { choose, causal = false, shade = Math.sqrt } = {}) {
  return element("div", { className: "strip", role: "group", "aria-label": "Tokens with their shares" }, ...tokens.map((token, index) => {
    const isLater = causal && index > reader, share = weights[index];
    const parts = [element("span", {}, shortToken(token.text)), element("span", { className: "number" }, isLater ? "not yet" : share === undefined ? "" : percent(share))];
    const node = choose ? element("button", { type: "button", "aria-pressed": String(index === reader), onclick: () => choose(index) }, ...parts) : element("span", { className: "still" }, ...parts);
    if (index === reader) node.classList.add("reader");
    node.classList.toggle("later", isLater);
    node.style.setProperty("--share", `${Math.round(55 * shade(share ?? 0))}%`);
    return node;
  }));
}

function attentionPart(answer) {
  const maps = attentionMaps(answer), isPair = answer.attention.source.length > 0;
  const layer = element("select"), head = element("select"), hint = element("p", { className: "finding", "aria-live": "polite" });
  const strip = element("div"), picture = element("div"), overview = element("div"), numbers = element("details");
  layer.append(...maps.map((map, index) => new Option(map.title, index)));
  const state = { reader: 0 };
  const map = () => maps[layer.value], chosen = () => Number(head.value);
  const choose = (mapIndex, headIndex) => {
    layer.value = String(Math.max(0, Math.min(maps.length - 1, mapIndex)));
    const heads = map().weights.length;
    head.replaceChildren(...Array.from({ length: heads }, (_, index) => new Option(`Head ${index + 1}`, index)), new Option("Mean of all heads", MEAN_OF_HEADS));
    head.value = String(headIndex === MEAN_OF_HEADS ? MEAN_OF_HEADS : Math.min(heads - 1, headIndex));
    draw();
  };
  const read = (reader) => {
    const { rows, columns, kind } = map(), weights = headWeights(map(), chosen());
    state.reader = Math.max(0, Math.min(rows.length - 1, reader));
    const line = weights[state.reader], again = strip.contains(document.activeElement);
    const own = kind !== "cross";
    strip.replaceChildren(...(own ? [] : [element("p", { className: "soft" }, "Target: choose a token")]),
      attentionStrip(rows, own ? line : [], state.reader, { choose: read, causal: map().causal }),
      ...(own ? [] : [element("p", { className: "soft" }, "Source: where it looks"), attentionStrip(columns, line, -1)]));
    if (again) strip.querySelector("[aria-pressed=true]")?.focus();
    state.picture.choose(state.reader);
    const name = chosen() === MEAN_OF_HEADS ? "the mean of all heads" : `head ${chosen() + 1}`, strongest = line.indexOf(Math.max(...line));
    const target = own && strongest === state.reader ? "itself" : quotedToken(columns, strongest);
    hint.textContent = `${quotedToken(rows, state.reader)} looks at ${target} with ${unbroken(line[strongest])}. Over the whole sentence, ${name} of ${map().title.toLowerCase()} ${headHint(weights, map()).text}.`;
  };
  const draw = () => {
    answer.head = [Number(layer.value), chosen()];
    const current = map(), weights = headWeights(current, chosen());
    state.picture = attentionMap(weights, current, read);
    picture.replaceChildren(state.picture.node);
    overview.replaceChildren(headTable(maps, hints, answer.head, (...place) => { choose(...place); keep(); }));
    numbers.ontoggle = () => numbers.open && numbers.children.length < 2 && numbers.append(table(["token", ...current.columns.map((token) => shortToken(token.text))],
      weights.map((row, t) => [shortToken(current.rows[t].text), ...row.map((weight, s) => (current.causal && s > t ? "not yet" : percent(weight)))]), "Attention weights"));
    numbers.open = false;
    numbers.replaceChildren(element("summary", {}, "The numbers of this picture as a table"));
    read(Math.min(state.reader, current.rows.length - 1));
    answer.headChanged?.();
  };
  const keep = () => drafts.set("inside-head", { of: answer.model.id, head: answer.head });
  layer.addEventListener("change", () => { choose(Number(layer.value), chosen()); keep(); });
  head.addEventListener("change", () => { draw(); keep(); });
  const cross = maps.findIndex((entry) => entry.kind === "cross"), kept = drafts.get("inside-head");
  // At first, the head whose rule is the clearest, and the token that follows it most.
  const hints = maps.map((entry, index) => entry.weights.map((weights, number) => ({ ...headHint(weights, entry), place: [index, number] }))), all = hints.flat();
  const anyClear = all.some(({ strength }) => strength > 0), rests = all.some(({ label }) => /first/.test(label));
  const clearest = all.filter(({ place }) => cross < 0 || maps[place[0]].kind === "cross").reduce((one, other) => other.strength > one.strength ? other : one);
  const { place, reader } = kept?.of === answer.model.id ? { place: kept.head } : clearest.strength > 0 ? clearest : strongestLook(maps, cross);
  const opening = all.find((entry) => String(entry.place) === String(place));
  state.reader = reader ?? opening?.clearest ?? Math.max(0, maps.at(-1).rows.findLastIndex(isWord)); // a word, not a full stop
  choose(...place);
  return insidePart("Attention: which words a word looks at", [
    `In each layer, every token looks at ${answer.lens && !answer.lens.masked && !isPair ? "itself and the tokens before it, never at those that come later" : "other tokens"}, and takes over information from them. How strongly is a share; the shares of a token add up to 100 %.`,
    "A layer has several heads that look at different things at the same time. Nobody told a head what to look at: it learned that in training. Choose a layer and a head, and then a token.",
    rests ? "Many heads look at the first token: it is a resting place for when nothing else fits." : null,
  ].filter(Boolean), element("div", { className: "row" }, labelled("Layer", layer), labelled("Head", head)), hint,
  element("h4", {}, "Choose a token: where does it look?"), strip,
  maps.some(({ causal }) => causal) ? element("p", { className: "soft" }, "Hatched: not yet written when this token is read, so it cannot look there. 0 %: it could look there, and does not.") : null,
  element("h4", {}, "The same for all tokens"),
  element("p", { className: "soft" }, "A row is the token that looks, a column the token that it looks at. The stronger its colour, the more it looks there. Point at a square, or use the arrow keys."),
  picture, numbers, element("h4", {}, "What each head does with this sentence"),
  element("p", { className: "soft" }, "A label holds for this sentence only: with another one, the same head can do something else."),
  mixedHeads(all, maps, cross) ?? (anyClear ? null : element("p", {}, "With this sentence, no head follows one rule clearly. Another one can show more, such as a longer sentence in which a name or a word occurs twice.")),
  overview, headLegend(all));
}

// Where to look when most heads follow no rule: the strongest look at one word, as an example.
function mixedHeads(hints, maps, cross) {
  const mixed = hints.filter(({ label }) => label === "mixed").length;
  if (mixed < 0.6 * hints.length) return null;
  const { place: [index, head], reader, share } = strongestLook(maps, cross), map = maps[index];
  const example = reader === undefined ? "" : ` For example, ${quotedToken(map.rows, reader)} looks at ${quotedToken(map.columns, map.weights[head][reader].indexOf(share))} with ${unbroken(share)} in ${map.title.toLowerCase()}, head ${head + 1}.`;
  return element("p", {}, `${integers.format(mixed)} of ${integers.format(hints.length)} heads are “mixed” here: they follow none of the simple rules over the whole sentence. Look at single words instead: choose a name or a word such as “his” above, and go through the heads.${example}`);
}

// The head and the word that looks most at one other word which is not its neighbour: {place, reader}.
function strongestLook(maps, cross) {
  let best = { place: [Math.max(0, cross), 0], share: 0 };
  for (const [index, { weights, rows, columns, kind }] of maps.entries()) {
    if (cross >= 0 && kind !== "cross") continue;
    for (const [number, head] of weights.entries()) {
      for (const [t, row] of head.entries()) {
        const share = !isWord(rows[t]) || isMark(rows[t]) ? 0 : Math.max(...row.filter((_, s) => isWord(columns[s]) && !isMark(columns[s]) && (kind === "cross" || Math.abs(s - t) > 1)));
        if (share > best.share) best = { place: [index, number], reader: t, share };
      }
    }
  }
  return best;
}

// What the labels of a table of heads mean, of those that are in it.
function headLegend(hints) {
  const rules = new Map(hints.filter(({ rule }) => rule).map(({ rule }) => rule)), has = (label) => hints.some((hint) => hint.label.startsWith(label));
  const lines = [...rules,
    rules.size ? ["%", "the share of the attention that follows this rule, on average over the sentence"] : null,
    has("partly") ? ["partly", "the rule is followed, but with less than 40 % of the attention; the rest goes elsewhere"] : null,
    has("even") ? ["even", "spreads its attention nearly alike over all tokens that it sees"] : null,
    has("mixed") ? ["mixed", "follows none of the rules that this page knows: where it looks depends on the words"] : null].filter(Boolean);
  return element("ul", { className: "soft meanings", "aria-label": "What the labels mean" }, ...lines.map(([label, text]) => element("li", {}, element("strong", {}, label), `: ${text}`)));
}

// A table of layers and heads with the hint of each; a head is chosen by its button.
function headTable(maps, hints, [chosenMap, chosenHead], choose) {
  const most = Math.max(...maps.map((map) => map.weights.length));
  const rows = maps.map((map, index) => [map.title, ...Array.from({ length: most }, (_, head) => {
    if (head >= map.weights.length) return "";
    const button = element("button", { type: "button", className: "plain", "aria-pressed": String(index === chosenMap && head === chosenHead), onclick: () => {
      choose(index, head);
      document.querySelector(".heads [aria-pressed=true]")?.focus();
    } }, hints[index][head].label);
    button.setAttribute("aria-label", `${map.title}, head ${head + 1}: ${button.textContent}`);
    return button;
  })]);
  const node = table(["", ...Array.from({ length: most }, (_, head) => `Head ${head + 1}`)], rows, "What each head does");
  node.classList.add("heads");
  return node;
}

// A map of weights: a square for each pair of tokens. Pointing at one, or an arrow key, reads it out.
function attentionMap(weights, { rows, columns, title, causal }, read) {
  const cell = 22, left = 110, top = 96, cursor = { t: 0, s: 0 };
  const width = left + cell * columns.length + 48, height = cell * rows.length + 4;
  const label = (text, x, y, more = {}) => svg("text", { x, y, ...more }, text);
  const band = svg("rect", { class: "band", x: 0, y: 0, width, height: cell }), frame = svg("rect", { class: "frame", width: cell, height: cell });
  const squares = weights.flatMap((row, t) => row.flatMap((weight, s) => weight < 0.005 ? []
    : [svg("rect", { class: "square", x: left + s * cell + 1, y: t * cell + 1, width: cell - 2, height: cell - 2, "fill-opacity": Math.min(1, 0.03 + 0.97 * weight ** 0.7).toFixed(3) })]));
  const later = causal ? rows.flatMap((_, t) => columns.flatMap((_, s) => s <= t ? [] : [`M${left + s * cell + 4} ${(t + 1) * cell - 4}l${cell - 8} ${8 - cell}`])) : [];
  const names = svg("svg", { class: "names", viewBox: `0 0 ${width} ${top}`, width, height: top, "aria-hidden": "true" },
    ...columns.map((token, s) => label(shortToken(token.text), 0, 0, { transform: `translate(${left + (s + 0.7) * cell} ${top - 6}) rotate(-60)` })));
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "application", tabindex: 0, "aria-label": `Attention map of ${title}. Arrow keys move.` },
    svg("title", {}, `Attention weights of ${title}: a row looks at a column`), band,
    svg("rect", { class: "outline", x: left, y: 0, width: cell * columns.length, height: cell * rows.length }), svg("path", { class: "later", d: later.join("") }), ...squares, frame,
    ...rows.map((token, t) => label(shortToken(token.text), left - 6, (t + 0.7) * cell, { "text-anchor": "end" })));
  const told = element("p", { className: "told", "aria-live": "polite" });
  const show = (t, s) => {
    cursor.t = Math.max(0, Math.min(rows.length - 1, t));
    cursor.s = Math.max(0, Math.min(columns.length - 1, s));
    frame.setAttribute("x", left + cursor.s * cell);
    frame.setAttribute("y", cursor.t * cell);
    band.setAttribute("y", cursor.t * cell);
    const pair = [rows[cursor.t], columns[cursor.s]].map((token, index) => `“${shortToken(token.text)}” (token ${(index ? cursor.s : cursor.t) + 1})`);
    told.textContent = causal && cursor.s > cursor.t ? `${pair[0]} cannot look at ${pair[1]}, which is not yet written.`
      : `${pair[0]} looks at ${pair[1]} with ${unbroken(weights[cursor.t][cursor.s])} of its attention.`;
  };
  const at = (event) => {
    const box = drawing.getBoundingClientRect(), scale = width / box.width;
    return [Math.floor(((event.clientY - box.top) * scale) / cell), Math.floor(((event.clientX - box.left) * scale - left) / cell)];
  };
  drawing.addEventListener("pointermove", (event) => show(...at(event)));
  drawing.addEventListener("click", (event) => { show(...at(event)); read(cursor.t); });
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const s = cursor.s + step[1];
    if (step[0]) read(cursor.t + step[0]);
    show(cursor.t, s);
    frame.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  const strongest = (t) => weights[t].indexOf(Math.max(...weights[t]));
  return { node: element("div", {}, told, element("div", { className: "map" }, names, drawing)), choose: (t) => show(t, strongest(t)) };
}
