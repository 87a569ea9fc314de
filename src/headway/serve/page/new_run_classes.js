"use strict";
// The folders that are classes, before the training: how many files each has, some of its images, and a tick to leave it out.

const PREVIEWS = 4, PREVIEWED_CLASSES = 60; // images of each class; classes that have them
const SPLIT_FOLDER = /(?:^|[-_.])(train|training|val|valid|validation|dev|test)(?:[-_.]?\d[\w.-]*)?$/i;

// The classes of files by name: {folders, paths}. Their folders are the outermost ones that are several, or those in
// folders named train, val and test, as in the training.
function classFolders(paths) {
  let parts = paths.map((path) => path.split("/")), depth = 0;
  while (parts.length && parts.every((path) => path.length > depth + 1 && path[depth] === parts[0][depth]) && parts.some((path) => path.length > depth + 2)) depth += 1;
  parts = parts.filter((path) => path.length > depth + 1);
  if (parts.length && parts.every((path) => SPLIT_FOLDER.test(path[depth]))) depth += 1;
  const classes = new Map();
  for (const path of parts.filter((path) => path.length > depth + 1)) {
    const known = classes.get(path[depth]) ?? { folders: new Set(), paths: [] };
    classes.set(path[depth], known);
    known.folders.add(path.slice(0, depth + 1).join("/"));
    known.paths.push(path.join("/"));
  }
  return classes;
}

// The files that are not in a class that is left out.
function withoutClasses(files, names) {
  const classes = classFolders(files.map(filePath)), left = new Set(names.flatMap((name) => classes.get(name)?.paths ?? []));
  return files.filter((file) => !left.has(filePath(file)));
}

// A card for each class of an upload, and of those left out, with a tick; null if it has no folders. `files` are those in
// this browser, if it still has them. `changed` is called when a tick changes, and `use(names)` with the classes to leave out.
function classChoice(uploaded, leftOut, files, noun, changed, use) {
  const arrived = classFolders(uploaded), local = classFolders((files ?? []).map(filePath)), byPath = new Map((files ?? []).map((file) => [filePath(file), file]));
  const counts = new Map([...[...arrived].map(([name, { paths }]) => [name, paths.length]), ...leftOut.map(({ name, count }) => [name, count])]);
  if (counts.size < 2) return null;
  const names = [...counts.keys()].sort(new Intl.Collator("en", { numeric: true }).compare), ticks = new Map();
  const button = element("button", { type: "button", className: "main", hidden: true, onclick: () => use(names.filter((name) => !ticks.get(name).checked).map((name) => ({ name, count: counts.get(name) }))) });
  const hint = element("p", { className: "soft", role: "status" });
  const update = () => {
    const ticked = names.filter((name) => ticks.get(name).checked), isChanged = names.some((name) => ticks.get(name).checked !== arrived.has(name));
    button.hidden = !isChanged || ticked.length < 2;
    button.textContent = `Use these ${integers.format(ticked.length)} folders`;
    hint.textContent = ticked.length < 2 ? "A model needs at least two folders to tell apart." : "";
    changed();
  };
  const preview = (path) => {
    const url = URL.createObjectURL(byPath.get(path)), name = path.split("/").pop();
    const image = element("img", { src: url, alt: "", title: name, onload: () => URL.revokeObjectURL(url),
      onerror: () => { URL.revokeObjectURL(url); image.replaceWith(element("span", { className: "soft" }, `${shortName(name)} cannot be shown`)); } });
    return image;
  };
  const cards = names.map((name, index) => {
    const tick = element("input", { type: "checkbox", checked: arrived.has(name), disabled: !arrived.has(name) && !files, onchange: update });
    ticks.set(name, tick);
    const paths = local.get(name)?.paths ?? [], every = Math.max(1, Math.floor(paths.length / PREVIEWS));
    const shown = noun === "image" && index < PREVIEWED_CLASSES ? paths.filter((_, place) => place % every === 0).slice(0, PREVIEWS) : [];
    const count = `${integers.format(counts.get(name))} ${noun}${counts.get(name) === 1 ? "" : "s"}`;
    return element("label", { className: "option" }, element("span", { className: "row" }, tick, element("strong", {}, shortName(name)), element("span", { className: "soft" }, count)),
      shown.length ? element("span", { className: "thumbs" }, ...shown.map(preview)) : null);
  });
  return element("fieldset", {}, element("legend", {}, `The ${integers.format(names.length)} folders: remove a tick to leave one out`), element("div", { className: "options" }, ...cards),
    !files && leftOut.length ? element("p", { className: "soft" }, "To use a folder again that was left out, choose the same files again.") : null, hint, button);
}
