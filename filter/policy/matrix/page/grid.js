
// spare is the number of rows and columns to draw beyond the visible ones. Columns are added and
// removed in multiples of spare, because each change of columns affects every row.
const spare = 8;

const heading = (role, index, o) => `<div role="${role}" aria-colindex="${index}" class="head${o.class}" tabindex="-1" title="${escape(o.title)}">${o.html}</div>`;

// Grid draws a table of any size: the page has elements only for visible cells and some around them.
// Headings have the row or column -1. Arrow keys move the focus; the tab key reaches a single cell.
class Grid {
  // The object on has the functions point(r, c), open(r, c, {touch, keep}) and escape().
  constructor(scroller, root, on) {
    Object.assign(this, {scroller, root, on, table: null, at: {r: 0, c: 0}, kept: null, marked: null, drawn: new Map()});
    root.innerHTML = '<div role="row" class="row top" aria-rowindex="1"></div><div role="rowgroup" class="body"></div>';
    [this.top, this.body] = root.children;
    let frame = 0;
    scroller.addEventListener("scroll", () => { frame ||= requestAnimationFrame(() => { frame = 0; this.render(); }); }, {passive: true});
    root.addEventListener("pointerover", e => { if (e.pointerType === "mouse") this.over(e.target); });
    // If a pointer moves the focus, no reasons are shown: the click that follows shows them.
    root.addEventListener("pointerdown", e => { this.quiet = true; this.touch = e.pointerType === "touch"; });
    root.addEventListener("pointercancel", () => { this.quiet = false; });
    root.addEventListener("focusin", e => this.focused(this.place(e.target)));
    root.addEventListener("click", e => {
      const p = this.place(e.target);
      this.quiet = false;
      if (!p) return;
      this.focus(p.r, p.c, {quiet: true});
      on.open(p.r, p.c, {touch: this.touch, keep: e.shiftKey});
    });
    scroller.addEventListener("keydown", e => this.key(e));
  }

  // show draws a table. The object table has the numbers of rows and columns, the sizes of cells and
  // headings in pixels, and the functions rowHead(r), columnHead(c) and cell(r, c), which return {html,
  // title, class}. In addition, rowHead returns "first", a class for the whole row.
  show(table) {
    this.table = table;
    this.at = {r: Math.min(this.at.r, table.rows - 1), c: Math.min(this.at.c, table.columns - 1)};
    const set = (name, px) => this.root.style.setProperty(name, px + "px");
    set("--cell", table.width); set("--line", table.height); set("--side", table.side); set("--top", table.top);
    this.root.style.width = table.side + table.columns * table.width + "px";
    this.body.style.height = table.rows * table.height + "px";
    this.root.setAttribute("aria-rowcount", table.rows + 1);
    this.root.setAttribute("aria-colcount", table.columns + 1);
    this.first = this.last = -1;
    this.render();
  }

  // render draws visible rows and columns that are not drawn yet, and removes those that are far away.
  render() {
    const {table: t, scroller: s, drawn} = this;
    if (!t) return;
    const had = this.root.contains(document.activeElement);
    const first = Math.max(0, Math.floor(s.scrollLeft / t.width / spare - 1) * spare);
    const last = Math.min(t.columns, Math.ceil((s.scrollLeft + s.clientWidth - t.side) / t.width / spare + 1) * spare);
    const above = Math.max(0, Math.floor(s.scrollTop / t.height) - spare);
    const below = Math.min(t.rows, Math.ceil((s.scrollTop + s.clientHeight - t.top) / t.height) + spare);
    if (first !== this.first || last !== this.last) this.columns(first, last);
    for (const [r, row] of drawn) if (r < above || r >= below) { row.remove(); drawn.delete(r); }
    const before = document.createDocumentFragment(), after = document.createDocumentFragment(); // keep the rows in order
    for (let r = above, seen = !drawn.size; r < below; r++) {
      if (drawn.has(r)) seen = true;
      else (seen ? after : before).append(this.row(r));
    }
    this.body.prepend(before);
    this.body.append(after);
    this.stop(had);
    if (this.marked) this.mark(this.marked);
  }

  // columns draws the columns from first up to last, and removes all others.
  columns(first, last) {
    const [was, end] = [this.first, this.last], {drawn, top} = this;
    [this.first, this.last] = [first, last];
    this.root.style.setProperty("--before", first * this.table.width + "px");
    if (was < 0 || first >= end || last <= was) {
      top.innerHTML = this.line(-1);
      drawn.clear();
      this.body.replaceChildren();
      return;
    }
    for (const [r, row] of [[-1, top], ...drawn]) {
      for (let c = was; c < first; c++) row.children[2].remove();
      for (let c = last; c < end; c++) row.lastChild.remove();
      if (first < was) row.children[1].insertAdjacentHTML("afterend", this.cells(r, first, was));
      if (last > end) row.insertAdjacentHTML("beforeend", this.cells(r, end, last));
    }
  }

  row(r) {
    const row = document.createElement("div"), t = this.table;
    row.className = "row" + t.rowHead(r).first;
    row.setAttribute("role", "row");
    row.setAttribute("aria-rowindex", r + 2);
    row.style.top = r * t.height + "px";
    row.innerHTML = this.line(r);
    this.drawn.set(r, row);
    return row;
  }

  // line returns the elements of a row: its heading, a space as wide as the columns before the drawn
  // ones, and its cells.
  line(r) {
    const t = this.table;
    const first = r < 0 ? '<div role="columnheader" aria-colindex="1" class="head corner">from ↓ to →</div>' : heading("rowheader", 1, t.rowHead(r));
    return first + '<div class="before"></div>' + this.cells(r, this.first, this.last);
  }

  // cells returns the elements of row r in the columns from "from" up to "to".
  cells(r, from, to) {
    const t = this.table, html = [];
    for (let c = from; c < to; c++) {
      if (r < 0) { html.push(heading("columnheader", c + 2, t.columnHead(c))); continue; }
      const o = t.cell(r, c), kept = this.kept && this.kept.r === r && this.kept.c === c;
      html.push(`<div role="gridcell" aria-colindex="${c + 2}" aria-label="${escape(o.title)}" class="cell ${o.class}${kept ? " kept" : ""}" tabindex="-1">${o.html}</div>`);
    }
    return html.join("");
  }

  // element returns the element at row r and column c, or null if it is not drawn.
  element(r, c) {
    const row = r < 0 ? this.top : this.drawn.get(r);
    return row ? row.querySelector(`[aria-colindex="${c + 2}"]`) : null;
  }

  // place returns the row and column of the cell or heading that contains an element, or null if there
  // is none.
  place(element) {
    const e = element.closest && element.closest("[tabindex][aria-colindex]");
    return e && {r: Number(e.parentNode.getAttribute("aria-rowindex")) - 2, c: Number(e.getAttribute("aria-colindex")) - 2};
  }

  // stop makes one element reachable by the tab key. If focus is true, the grid had the focus, and stop
  // restores it if the focused element was removed.
  stop(focus) {
    for (const e of this.root.querySelectorAll('[tabindex="0"]')) e.tabIndex = -1;
    const e = this.element(this.at.r, this.at.c);
    if (e) e.tabIndex = 0;
    const other = e || this.root.querySelector(".cell, .head[tabindex]");
    if (!e && other) other.tabIndex = 0;
    if (focus && !this.root.contains(document.activeElement)) (e || this.scroller).focus({preventScroll: true});
  }

  // focus moves the focus, and scrolls until it is visible.
  focus(r, c, {quiet = false} = {}) {
    this.at = {r, c};
    this.reveal();
    this.quiet = quiet;
    const e = this.element(r, c);
    if (e) e.focus({preventScroll: true});
    this.quiet = false;
  }

  // reveal scrolls until the cell with the focus is visible.
  reveal() {
    const {table: t, scroller: s, at: {r, c}} = this;
    const into = (now, start, size, room) => start < now ? start : start + size > now + room ? start + size - room : now;
    if (r >= 0) s.scrollTop = into(s.scrollTop, r * t.height, t.height, s.clientHeight - t.top);
    if (c >= 0) s.scrollLeft = into(s.scrollLeft, c * t.width, t.width, s.clientWidth - t.side);
    this.render();
  }

  focused(p) {
    if (!p) return;
    this.at = p;
    this.stop(false);
    if (!this.quiet) this.on.point(p.r, p.c);
  }

  over(element) {
    const p = this.place(element);
    if (p) this.on.point(p.r, p.c);
  }

  // mark marks the headings of the cell whose reasons are shown. With null, it marks none.
  mark(p) {
    this.marked = p;
    for (const e of this.root.querySelectorAll(".on")) e.classList.remove("on");
    if (!p) return;
    for (const e of [this.element(p.r, -1), this.element(-1, p.c)]) if (e) e.classList.add("on");
  }

  // keep marks the cell whose reasons stay shown. With null, it marks none.
  keep(p) {
    this.kept = p;
    for (const e of this.root.querySelectorAll(".kept")) e.classList.remove("kept");
    const e = p && this.element(p.r, p.c);
    if (e) e.classList.add("kept");
  }

  key(e) {
    const {r, c} = this.at, t = this.table;
    this.quiet = false;
    if (!t || e.altKey || e.metaKey) return;
    if (e.key === "Escape") return this.on.escape();
    if (e.key === "Enter" || e.key === " ") { e.preventDefault(); return this.on.open(r, c, {keep: e.key === " "}); }
    const page = Math.max(1, Math.floor((this.scroller.clientHeight - t.top) / t.height) - 1), end = [t.rows - 1, t.columns - 1];
    const to = {
      ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1], ArrowUp: [r - 1, c], ArrowDown: [r + 1, c], PageUp: [Math.max(0, r - page), c], PageDown: [r + page, c],
      Home: e.ctrlKey ? [0, 0] : [r, 0], End: e.ctrlKey ? end : [r, end[1]],
    }[e.key];
    if (!to) return;
    e.preventDefault();
    const [nr, nc] = [Math.min(Math.max(to[0], -1), end[0]), Math.min(Math.max(to[1], -1), end[1])];
    if (nr >= 0 || nc >= 0) this.focus(nr, nc);
  }
}
