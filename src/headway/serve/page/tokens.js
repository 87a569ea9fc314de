"use strict";
// The text of an answer, token by token: the alternatives of each on hover, on focus and by arrow keys, and how surprising it was.

// A token in this list: only spaces alone have a sign.
const wordLabel = (text) => /^ *$/.test(text) ? tokenLabel(text) : tokenLabel(text.replace(/^ +/, "")).replaceAll("␣", " ");

// The list of a token's alternatives, next to it.
const alternatives = {
  box: element("div", { id: "alternatives", role: "group", "aria-label": "Alternatives", hidden: true }),
  token: null,

  // `instead`, if there is one, goes on with another token.
  show(token, entries, instead) {
    clearTimeout(this.timer);
    if (this.token === token) return;
    this.hide();
    this.token = token;
    const lists = entries.map(({ text, logprob, top }) => {
      const others = top.filter(([other]) => other !== text), chosen = `${wordLabel(text)} (written)`;
      const canReplace = (other) => instead && entries.length === 1 && other && !/^<.+>$|^\[.+\]$|\ufffd/.test(other); // a mark, or a part of a character
      const name = (other) => canReplace(other) ? element("button", { type: "button", className: "plain", onclick: () => { this.hide(); instead(other); } }, wordLabel(other)) : wordLabel(other);
      const rows = [[chosen, logprob], ...others.map(([other, value]) => [name(other), value])].sort((a, b) => b[1] - a[1]);
      return bars(rows.map(([name, value]) => [name, Math.exp(value)]));
    });
    const more = lists.some((list) => list.querySelector("button")) ? " Choose another one (Enter, then Tab) to continue the text from here with it." : "";
    this.box.replaceChildren(element("p", { className: "soft" }, "What the model could have written here. The percentages are the model's own, before “How daring” and the other settings change them.", more), ...lists);
    this.box.hidden = false;
    token.setAttribute("aria-describedby", this.box.id);
    this.place();
  },

  // Next to the token: above it if there is room, which leaves the field and the buttons free.
  place() {
    const [at] = this.token.getClientRects(), box = this.box.getBoundingClientRect();
    const below = at.top - box.height - 4 < 0;
    this.box.style.setProperty("left", `${Math.max(4, Math.min(at.left, innerWidth - box.width - 4))}px`);
    this.box.style.setProperty("top", `${below ? Math.max(4, Math.min(at.bottom + 4, innerHeight - box.height - 4)) : at.top - box.height - 4}px`);
  },

  hide() {
    clearTimeout(this.timer);
    this.token?.removeAttribute("aria-describedby");
    this.token = null;
    this.box.hidden = true;
  },

  // The pointer may move from the token into the list.
  hideSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.hide(), 200);
  },
};
document.body.append(alternatives.box);
alternatives.box.addEventListener("pointerenter", () => clearTimeout(alternatives.timer));
alternatives.box.addEventListener("pointerleave", () => alternatives.hideSoon());
alternatives.box.addEventListener("mousedown", (event) => event.preventDefault()); // the token keeps the focus
alternatives.box.addEventListener("focusout", (event) => { if (!alternatives.box.contains(event.relatedTarget)) alternatives.hide(); });
alternatives.box.addEventListener("keydown", (event) => { if (event.key === "Escape") alternatives.token?.focus(); });
window.addEventListener("scroll", () => {
  if (alternatives.token?.matches(":focus, :hover") || alternatives.box.contains(document.activeElement)) alternatives.place(); // the arrow keys scroll, too
  else alternatives.hide();
}, { capture: true, passive: true });

// Text that grows. Tokens are {text, logprob, top: [[text, logprob], ...]}; text without them is plain. `instead(text)`
// goes on from another text: what is before a token, and one that could have stood there.
class TokenText {
  constructor(text = "", instead) {
    this.text = text;
    this.instead = instead;
    this.entries = new Map(); // {tokens, start} of each element
    this.waiting = []; // tokens whose text comes later: parts of a character
    this.root = element("div", { className: "tokens" }, text);
    for (const [kind, handle] of [["pointerover", this.enter], ["focusin", this.enter]]) this.root.addEventListener(kind, handle.bind(this));
    this.root.addEventListener("pointerleave", () => alternatives.hideSoon());
    this.root.addEventListener("focusout", (event) => { if (!alternatives.box.contains(event.relatedTarget)) alternatives.hide(); });
    this.root.addEventListener("keydown", (event) => this.move(event));
    this.root.addEventListener("click", (event) => { if (this.entries.has(event.target)) this.focus(event.target); });
  }

  add(text, tokens) {
    this.waiting.push(...tokens);
    if (!text) return;
    const start = this.text.length;
    this.text += text;
    if (!this.waiting.length) {
      this.root.append(text);
      return;
    }
    const first = !this.entries.size, probability = Math.exp(this.waiting.at(-1).logprob);
    const [, before, visible, after] = /^(\s*)(.*?)(\s*)$/s.exec(text); // white space at the end of a line is not coloured
    const surprise = probability >= 0.5 || !visible ? "" : probability >= 0.1 ? " rare" : probability >= 0.01 ? " rarer" : " rarest";
    const token = element("span", { className: `token${surprise}`, tabIndex: first ? 0 : -1 }, visible || text);
    if (first) {
      this.root.setAttribute("role", "group");
      this.root.setAttribute("aria-label", "Answer. The arrow keys show what the model could have written instead of each token");
    }
    this.entries.set(token, { tokens: this.waiting, start });
    this.waiting = [];
    this.root.append(...(visible ? [before, token, after].filter(Boolean) : [token]));
  }

  enter(event) {
    const entry = this.entries.get(event.target);
    if (entry) alternatives.show(event.target, entry.tokens, this.instead && ((other) => this.instead(this.text.slice(0, entry.start) + other)));
    else alternatives.hideSoon();
  }

  // One tab stop for all tokens: the arrow keys move it.
  focus(token) {
    this.root.querySelector("[tabindex='0']").tabIndex = -1;
    token.tabIndex = 0;
    token.focus();
  }

  move(event) {
    if (event.key === "Escape") return alternatives.hide();
    if (event.key === "Enter") {
      event.preventDefault(); // it would press the button
      return alternatives.box.querySelector("button")?.focus();
    }
    const { target } = event, tokens = { ArrowRight: target.nextElementSibling, ArrowLeft: target.previousElementSibling, Home: this.root.firstElementChild, End: this.root.lastElementChild };
    if (!(event.key in tokens) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (this.entries.has(tokens[event.key])) this.focus(tokens[event.key]);
  }
}
