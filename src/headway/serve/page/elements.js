"use strict";
// Elements of the page. Strings from models, files and people are only ever inserted as text.

const integers = new Intl.NumberFormat("en");

// A new element: its properties (a key with "on" adds a listener, "data-" or "aria-" an attribute) and its children.
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Set a property of an element, unless it has this text or number: an equal one would be drawn again, too.
function setText(node, property, value) {
  if (node[property] !== String(value)) node[property] = value;
}

// A new element of a drawing (SVG), with its attributes and its children.
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A form field with its label; `more` is a hint, which the field refers to.
function labelled(text, field, more) {
  field.id ||= `field-${++labelled.count}`;
  const hint = more && element("span", { className: "soft", id: `${field.id}-hint` }, more);
  if (hint) field.setAttribute("aria-describedby", hint.id);
  return element("div", { className: "field" }, element("label", { for: field.id }, text), field, hint);
}
labelled.count = 0;

// A table from column titles and rows of strings, numbers or elements. Numbers are aligned at the right.
function table(titles, rows, caption) {
  const numeric = titles.map((_, column) => rows.length > 0 && rows.every((row) => typeof row[column] === "number" || row[column] === null));
  const cell = (value, column) => element("td", { className: numeric[column] ? "number" : "" },
    typeof value === "number" ? formatNumber(value) : value ?? "");
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption }, element("table", {},
    element("thead", {}, element("tr", {}, ...titles.map((title, column) => element("th", { scope: "col", className: numeric[column] ? "number" : "" }, title)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell))))));
}

// A bar chart of labelled numbers from 0 to 1, as a list that can be read aloud.
function bars(entries) {
  return element("ul", { className: "bars" }, ...entries.map(([label, share]) => {
    const bar = element("span", { className: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", `${100 * Math.max(0, Math.min(1, share))}%`);
    return element("li", {}, element("span", { className: "name" }, label), bar, element("span", { className: "number" }, percent(share)));
  }));
}

// The entries of labels with numbers, the highest first. (JavaScript puts labels such as "7" into an order of its own.)
const likeliest = (labels) => Object.entries(labels).sort((one, other) => other[1] - one[1]);

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;

function formatNumber(value) {
  if (Number.isInteger(value)) return integers.format(value);
  return Math.abs(value) >= 0.001 && Math.abs(value) < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

// A number in words: 1.1 million.
function roundNumber(value) {
  const unit = [["billion", 1e9], ["million", 1e6], ["thousand", 1e3]].find(([, size]) => value >= size);
  return unit ? `${integers.format(Number((value / unit[1]).toPrecision(2)))} ${unit[0]}` : integers.format(value);
}

function formatBytes(count) {
  const unit = count < 1e6 ? ["kB", 1e3] : count < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  return `${Number((count / unit[1]).toPrecision(3))} ${unit[0]}`;
}

// A button that copies what `text` returns.
function copyButton(text, label = "Copy") {
  const button = element("button", { type: "button", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
      page.note("Copied. You can paste it elsewhere now.");
    } catch {
      button.textContent = "The browser refused; select the text instead";
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  } }, label);
  return button;
}

// Rows of strings and numbers as the text of a .csv file.
function csvText(rows) {
  const field = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return rows.map((row) => `${row.map(field).join(",")}\n`).join("");
}

// Save a file from the browser, and say so.
function saveFile(name, content, type = "text/plain;charset=utf-8") {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  page.note(`Saved as ${shortName(name)} in your downloads.`);
}

// "Show me the command": the same as a shell line and as Python. `lines` returns {shell, python} when it is opened.
function commandView(lines) {
  const shell = element("pre", { tabIndex: 0 }), python = element("pre", { tabIndex: 0 });
  const view = element("details", { className: "command", ontoggle: () => view.update() },
    element("summary", {}, "Show me the command"),
    element("div", { className: "row" }, element("strong", {}, "Shell"), copyButton(() => shell.textContent)), shell,
    element("div", { className: "row" }, element("strong", {}, "Python"), copyButton(() => python.textContent)), python);
  view.update = () => {
    if (!view.open) return;
    const command = lines();
    shell.textContent = command.shell;
    python.textContent = command.python;
  };
  return view;
}

// A file's name, cut in the middle if it is long.
const shortName = (name) => name.length > 60 ? `${name.slice(0, 40)}…${name.slice(-16)}` : name;

// A token in a list: spaces and other characters that cannot be seen have a sign.
function tokenLabel(text) {
  const signs = text.slice(0, 60).replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  return signs.replace(/[\u0000-\u001f]/g, (sign) => String.fromCharCode(0x2400 + sign.charCodeAt(0))) || "∅";
}

// A string as one word of a shell, and as a literal of Python.
const shellWord = (text) => /^[\w./:=@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
const pythonString = (text) => JSON.stringify(text).replace(/[\u007f-\u009f\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

// A number, string, truth value or list of them as Python.
function pythonValue(value) {
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value === "string") return pythonString(value);
  return { true: "True", false: "False", null: "None" }[value] ?? String(value);
}

// A row of buttons that fill a form with an example.
function exampleButtons(examples, use) {
  const buttons = examples.slice(0, 5).map((example) => element("button", { type: "button", className: "plain", onclick: () => use(example) }, firstWords(example, 30)));
  return element("div", { className: "row examples" }, "Examples:", ...buttons);
}

// The first words of a text, as a title.
function firstWords(text, length = 48) {
  const line = text.slice(0, 500).replace(/\s+/g, " ").trim();
  return line.length <= length ? line : `${line.slice(0, length).replace(/\s\S*$/, "")}…`;
}
