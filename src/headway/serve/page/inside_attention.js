"use strict";
// Attention of any layer and head: what a head does, a row of words, a map; and the same words in another order.

const MEAN_OF_HEADS = -1;

// The maps of an answer, with names for people: {name, title, weights [H][T][S], rows, columns}.
function attentionMaps({ attention, tokens }) {
  const counts = { encoder: 0, cross: 0, own: 0 };
  const source = attention.source.map((text) => ({ text }));
  const target = tokens.length === attention.symbols.length ? tokens : attention.symbols.map((text) => ({ text }));
  return Object.entries(attention.maps).map(([name, weights]) => {
    const kind = attention.across.includes(name) ? "cross" : source.length && name.startsWith("encoder") ? "encoder" : "own";
    const number = ++counts[kind];
    const title = { own: `Layer ${number}`, encoder: `Source, layer ${number}`, cross: `Target looks at source, layer ${number}` }[kind];
    return { name, kind, title, weights, rows: kind === "encoder" ? source : target, columns: kind === "own" ? target : source };
  });
}

const headWeights = (map, head) => head === MEAN_OF_HEADS
  ? map.weights[0].map((row, t) => row.map((_, s) => map.weights.reduce((sum, weights) => sum + weights[t][s], 0) / map.weights.length))
  : map.weights[head];

// What a head mostly does, found in its weights: {label, text, strength}. Shares are means over the tokens that a rule
// applies to, next to the shares that these would have if attention were even.
function headHint(weights, { rows, columns, kind }) {
  const across = kind === "cross", causal = !across && weights.every((row, t) => row.every((weight, s) => s <= t || weight === 0));
  const share = (where, least = 1) => {
    const found = weights.map((row, t) => [where(t).filter((s) => s >= 0 && s < row.length), row, t]).filter(([places]) => places.length);
    const mean = (value) => found.length < least ? 0 : found.reduce((sum, entry) => sum + value(...entry), 0) / found.length;
    return [mean((places, row) => places.reduce((sum, s) => sum + row[s], 0)), mean((places, row, t) => places.length / (causal ? t + 1 : row.length))];
  };
  const sameAs = (t, step) => across ? [] : columns.flatMap((token, s) => s !== t && token.text === rows[t].text && (!causal || s + step < t) && s + step !== t ? [s + step] : []);
  const rules = [
    ["before", "looks at the token before", across ? [0, 0] : share((t) => [t - 1])],
    ["first", `looks at the first token${across ? " of the source" : ""}`, share((t) => t > 1 || across ? [0] : [])],
    ["itself", "looks at the token itself", across ? [0, 0] : share((t) => t ? [t] : [])],
    ["after", "looks at the token after", causal || across ? [0, 0] : share((t) => [t + 1])],
    ["same word", "looks at the same token elsewhere in the text", share((t) => sameAs(t, 0), 2)],
    ["what followed", "looks at what followed the same token earlier", share((t) => sameAs(t, 1), 2)],
    ["last", "looks at the last token of the source", across ? share(() => [columns.length - 1]) : [0, 0]],
  ];
  const evenness = weights.map((row, t) => {
    const seen = causal ? t + 1 : row.length;
    return seen < 2 ? null : -row.reduce((sum, weight) => sum + (weight > 0 ? weight * Math.log(weight) : 0), 0) / Math.log(seen);
  }).filter((value) => value !== null);
  const even = evenness.reduce((sum, value) => sum + value, 0) / Math.max(1, evenness.length);
  const [label, text, [best, byChance]] = rules.reduce((one, other) => other[2][0] > one[2][0] ? other : one);
  const figures = `${percent(best)} of its attention on average, and ${percent(byChance)} if it looked everywhere alike`;
  if (evenness.length && even > 0.92) return { label: "even", text: "spreads its attention nearly evenly over all tokens that it sees", strength: 0 };
  if (best >= 0.4 && best > 1.5 * byChance) return { label: `${label} ${percent(best)}`, text: `mostly ${text}: ${figures}`, strength: label === "first" ? best / 2 : best };
  if (best >= 0.2 && best > 2 * byChance) return { label: `partly ${label} ${percent(best)}`, text: `partly ${text}: ${figures}`, strength: best / 2 };
  return { label: "mixed", text: "follows no simple rule here: where it looks depends on the words", strength: 0 };
}

// A row of tokens, coloured by how strongly one of them looks at each; `choose(index)` makes the tokens buttons.
function attentionStrip(tokens, weights, reader, choose) {
  return element("div", { className: "strip", role: "group", "aria-label": "Tokens with their shares" }, ...tokens.map((token, index) => {
    const parts = [element("span", {}, shortToken(token.text)), element("span", { className: "number" }, weights[index] === undefined ? "" : percent(weights[index]))];
    const node = choose ? element("button", { type: "button", "aria-pressed": String(index === reader), onclick: () => choose(index) }, ...parts) : element("span", { className: "still" }, ...parts);
    if (index === reader) node.classList.add("reader");
    node.style.setProperty("--share", `${Math.round(55 * Math.sqrt(weights[index] ?? 0))}%`);
    return node;
  }));
}

function attentionPart(answer) {
  const maps = attentionMaps(answer), isPair = answer.attention.source.length > 0;
  const layer = element("select"), head = element("select"), hint = element("p", { className: "hint", "aria-live": "polite" });
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
      own ? attentionStrip(rows, line, state.reader, read) : attentionStrip(rows, [], state.reader, read),
      ...(own ? [] : [element("p", { className: "soft" }, "Source: where it looks"), attentionStrip(columns, line, -1)]));
    if (again) strip.querySelector("[aria-pressed=true]")?.focus();
    state.picture.choose(state.reader);
  };
  const draw = () => {
    answer.head = [Number(layer.value), chosen()];
    const current = map(), weights = headWeights(current, chosen());
    const name = chosen() === MEAN_OF_HEADS ? "The mean of all heads" : `Head ${chosen() + 1}`;
    hint.textContent = `${name} of ${current.title.toLowerCase()} ${headHint(weights, current).text}.`;
    state.picture = attentionMap(weights, current, read);
    picture.replaceChildren(state.picture.node);
    overview.replaceChildren(headTable(maps, Number(layer.value), chosen(), (...place) => { choose(...place); keep(); }));
    numbers.ontoggle = () => numbers.open && numbers.children.length < 2 && numbers.append(table(["token", ...current.columns.map((token) => shortToken(token.text))],
      weights.map((row, t) => [shortToken(current.rows[t].text), ...row.map((weight) => percent(weight))]), "Attention weights"));
    numbers.open = false;
    numbers.replaceChildren(element("summary", {}, "The numbers of this picture as a table"));
    read(Math.min(state.reader, current.rows.length - 1));
  };
  const keep = () => drafts.set("inside-head", answer.head);
  layer.addEventListener("change", () => { choose(Number(layer.value), chosen()); keep(); });
  head.addEventListener("change", () => { draw(); keep(); });
  state.reader = Math.max(0, maps.at(-1).rows.findLastIndex((token) => /\p{L}/u.test(token.text))); // a word, not a full stop
  const cross = maps.findIndex((entry) => entry.kind === "cross");
  // At first, the head whose rule is the clearest.
  const all = maps.flatMap((entry, index) => entry.weights.map((weights, number) => [headHint(weights, entry).strength, index, number]));
  const [, clearest, number] = all.filter(([, index]) => cross < 0 || maps[index].kind === "cross").reduce((one, other) => other[0] > one[0] ? other : one);
  choose(...drafts.get("inside-head", [clearest, number]));
  return insidePart("3. Attention: which words a word looks at", [
    `In each layer, every token looks at ${answer.lens && !answer.lens.masked && !isPair ? "itself and the tokens before it, never at those that come later" : "other tokens"}, and takes over information from them. How strongly is a share; the shares of a token add up to 100 %.`,
    "A layer has several heads that look at different things at the same time. Nobody told a head what to look at: it learned that in training. Choose a layer and a head, and then a token.",
  ], element("div", { className: "row" }, labelled("Layer", layer), labelled("Head", head)), hint,
  element("h4", {}, "Choose a token: where does it look?"), strip,
  element("h4", {}, "The same for all tokens"),
  element("p", { className: "soft" }, "A row is the token that looks, a column the token that it looks at. The darker a square, the stronger. Point at a square, or use the arrow keys."),
  picture, numbers, element("h4", {}, "What each head does with this sentence"), overview);
}

// A table of layers and heads with what each does; a head is chosen by its button.
function headTable(maps, chosenMap, chosenHead, choose) {
  const most = Math.max(...maps.map((map) => map.weights.length));
  const rows = maps.map((map, index) => [map.title, ...Array.from({ length: most }, (_, head) => {
    if (head >= map.weights.length) return "";
    const button = element("button", { type: "button", className: "plain", "aria-pressed": String(index === chosenMap && head === chosenHead), onclick: () => {
      choose(index, head);
      document.querySelector(".heads [aria-pressed=true]")?.focus();
    } }, headHint(map.weights[head], map).label);
    button.setAttribute("aria-label", `${map.title}, head ${head + 1}: ${button.textContent}`);
    return button;
  })]);
  const node = table(["", ...Array.from({ length: most }, (_, head) => `Head ${head + 1}`)], rows, "What each head does");
  node.classList.add("heads");
  return node;
}

// A map of weights: a square for each pair of tokens. Pointing at one, or an arrow key, reads it out.
function attentionMap(weights, { rows, columns, title }, read) {
  const cell = 22, left = 110, top = 96, cursor = { t: 0, s: 0 };
  const width = left + cell * columns.length + 8, height = top + cell * rows.length + 4;
  const label = (text, x, y, more = {}) => svg("text", { x, y, ...more }, text);
  const band = svg("rect", { class: "band", x: 0, y: top, width, height: cell }), frame = svg("rect", { class: "cursor", width: cell, height: cell });
  const squares = weights.flatMap((row, t) => row.flatMap((weight, s) => weight < 0.005 ? []
    : [svg("rect", { class: "square", x: left + s * cell + 1, y: top + t * cell + 1, width: cell - 2, height: cell - 2, "fill-opacity": Math.min(1, 0.03 + 0.97 * weight ** 0.7).toFixed(3) })]));
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "application", tabindex: 0, "aria-label": `Attention map of ${title}. Arrow keys move.` },
    svg("title", {}, `Attention weights of ${title}: a row looks at a column`), band,
    svg("rect", { class: "field", x: left, y: top, width: cell * columns.length, height: cell * rows.length }), ...squares, frame,
    ...rows.map((token, t) => label(shortToken(token.text), left - 6, top + (t + 0.7) * cell, { "text-anchor": "end" })),
    ...columns.map((token, s) => label(shortToken(token.text), 0, 0, { transform: `translate(${left + (s + 0.7) * cell} ${top - 6}) rotate(-60)` })));
  const told = element("p", { className: "told", "aria-live": "polite" });
  const show = (t, s) => {
    cursor.t = Math.max(0, Math.min(rows.length - 1, t));
    cursor.s = Math.max(0, Math.min(columns.length - 1, s));
    frame.setAttribute("x", left + cursor.s * cell);
    frame.setAttribute("y", top + cursor.t * cell);
    band.setAttribute("y", top + cursor.t * cell);
    told.textContent = `“${shortToken(rows[cursor.t].text)}” (token ${cursor.t + 1}) looks at “${shortToken(columns[cursor.s].text)}” (token ${cursor.s + 1}) with ${percent(weights[cursor.t][cursor.s])} of its attention.`;
  };
  const at = (event) => {
    const box = drawing.getBoundingClientRect(), scale = width / box.width;
    return [Math.floor(((event.clientY - box.top) * scale - top) / cell), Math.floor(((event.clientX - box.left) * scale - left) / cell)];
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
  });
  const strongest = (t) => weights[t].indexOf(Math.max(...weights[t]));
  return { node: element("div", {}, element("div", { className: "map" }, drawing), told), choose: (t) => show(t, strongest(t)) };
}

// Why the order matters: two words are swapped, and attention and prediction are compared.
function orderPart(answer, ask) {
  const matches = [...answer.text.matchAll(/(?<!\[)[\p{L}\p{N}'’]+(?!\])/gu)], words = matches.map((match) => match[0]), result = element("div", { "aria-live": "polite" });
  const pick = (index) => {
    const select = element("select", {}, ...words.map((word, place) => new Option(`${place + 1}: ${word}`, place)));
    select.value = String(index);
    return select;
  };
  const inSentence = matches.map((match) => /^\p{Lu}/u.test(match[0]) && /[\p{L},]\s+$/u.test(answer.text.slice(0, match.index))); // names, mostly
  const weight = (index) => (inSentence[index] ? 100 : 0) + words[index].length;
  const order = words.map((_, index) => index).sort((one, other) => weight(other) - weight(one));
  const other = order.find((index) => words[index] !== words[order[0]]) ?? 0;
  const [one, two] = [Math.min(order[0], other), Math.max(order[0], other)].map(pick);
  const swap = element("button", { type: "button", onclick: async () => {
    const places = [Number(one.value), Number(two.value)];
    const swapped = matches.reduceRight((text, match, index) => places.includes(index)
      ? text.slice(0, match.index) + words[places[1 - places.indexOf(index)]] + text.slice(match.index + match[0].length) : text, answer.text);
    swap.disabled = true;
    page.fail(null);
    try {
      const changed = await ask(swapped);
      result.replaceChildren(...orderComparison(answer, changed));
    } catch (error) {
      page.fail(error, error.status === 0 || error.status >= 500 ? () => swap.click() : undefined);
    } finally {
      swap.disabled = false;
    }
  } }, "Swap both words");
  return insidePart("Why the order matters", [
    "“The dog bit the man” and “the man bit the dog” have the same words. Attention compares words whatever their order, so the model is also told where each one stands. Swap two words and see what changes.",
  ], words.length < 2 ? element("p", {}, "Write at least two words to swap some.") : element("div", { className: "row" }, labelled("First word", one), labelled("Second word", two), swap), result);
}

function orderComparison(before, after) {
  const [layer, head] = before.head;
  const strips = [["Before", before], ["After", after]].flatMap(([name, answer]) => {
    const map = attentionMaps(answer)[layer], last = answer.lens ? answer.lens.next.position : map.rows.length - 1;
    const line = headWeights(map, head)[last];
    return [element("p", { className: "soft" }, `${name}: where “${shortToken(map.rows[last].text)}” looks (${map.title.toLowerCase()}, ${head === MEAN_OF_HEADS ? "mean of all heads" : `head ${head + 1}`})`),
      attentionStrip(map.rows, line, last)];
  });
  if (!before.lens) return strips;
  const both = [before, after].map((answer) => new Map(nextAt(answer.lens, 1).map(([token, share]) => [token.id, { token, share }])));
  const best = both.map((next) => [...next.values()].slice(0, 5)), [first, then] = best.map((list) => list[0].token);
  const ids = [...new Set(best.flat().map(({ token }) => token.id))];
  const names = [before, after].map(({ lens }) => firstGuess(lens));
  const cell = (next, id) => next.has(id) ? percent(next.get(id).share) : "below the first 50";
  return [
    element("p", { className: "soft" }, after.text), element("p", { className: "hint" }, `The same words, another order: the model's first guess ${first.id === then.id ? `stays the same, but its probability goes from ${names[0]} to ${names[1]}` : `changes from ${names[0]} to ${names[1]}`}.`),
    table(["predicted token", "before", "after"], ids.map((id) => [tokenLabel((both[0].get(id) ?? both[1].get(id)).token.text), ...both.map((next) => cell(next, id))]), "Predictions before and after the swap"),
    ...strips,
  ];
}
