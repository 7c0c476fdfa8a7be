"use strict";

const levels = ["namespace", "workload", "pod"];
const states = ["", "open", "part", "declared", "closed", "self"];
const isOpen = state => state === "open" || state === "part" || state === "declared";

// read decodes the data of the page, which is compressed JSON in Base64.
async function read(text) {
  const bytes = Uint8Array.from(atob(text.trim()), c => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// unrun decodes a row. Each run has two numbers: a kind and a length.
function unrun(runs) {
  const kinds = [];
  for (let i = 0; i < runs.length; i += 2) for (let n = 0; n < runs[i + 1]; n++) kinds.push(runs[i]);
  return Uint32Array.from(kinds);
}

// includes reports whether ports, such as "TCP 80-90, UDP, ICMP", include port, such as "TCP 80".
function includes(ports, port) {
  const [proto, number] = port.split(" ");
  return ports.split(", ").some(text => {
    const [p, range] = text.split(" ");
    if (p !== proto) return false;
    if (!range) return true;
    const [low, high] = range.split("-").map(Number);
    return low <= number && number <= (high || low);
  });
}

// uses are the bits of what was seen of a cell.
const uses = {used: 1, unused: 2, tried: 4, changed: 8};

// combined summarizes the states of pairs, as the command does for namespaces.
function combined(counts) {
  const all = states.reduce((n, s) => n + (s && s !== "self" ? counts[s] : 0), 0);
  if (all === 0) return counts.self ? "self" : "";
  if (counts.closed === all) return "closed";
  if (counts.open === all) return "open";
  return counts.declared && counts.declared + counts.closed === all ? "declared" : "part";
}

// Model answers questions about the data. A leaf is a party, given by its index in data.from or
// data.to. A line is a row or a column of a view: a namespace, a workload or one leaf.
class Model {
  constructor(data) {
    this.data = data;
    this.rows = data.rows.map(unrun);
    this.own = new Map(data.own.map(([i, j, kind]) => [i, {j, kind}]));
    this.seen = data.flows ? new Map() : null; // by row and column: what was seen of the cell
    for (const cell of data.seen || []) {
      if (!this.seen.has(cell.r)) this.seen.set(cell.r, new Map());
      this.seen.get(cell.r).set(cell.c, {never: data.texts[cell.never], ports: cell.ports.map(([port, flags, allowed, denied, first, last]) => (
        {port: data.texts[port], open: (flags & 1) > 0, own: (flags & 2) > 0, changed: (flags & 4) > 0, allowed, denied, first, last}))});
    }
    const sizes = new Map(); // leaves by workload
    for (const p of data.parties) {
      p.full = (p.ns ? p.ns + "/" : "") + p.name;
      p.search = p.full.toLowerCase();
      if (p.workload) p.above = p.ns + "/" + p.workload;
      sizes.set(p.above, (sizes.get(p.above) || 0) + 1);
    }
    for (const p of data.parties) if (sizes.get(p.above) < 2) p.above = "";
  }

  party(side, leaf) { return this.data.parties[this.data[side][leaf]]; }

  namespaces(side) {
    return [...new Set(this.data[side].map(i => this.data.parties[i].ns || "-"))];
  }

  // lines returns the rows of a view if side is "from", and its columns if side is "to".
  lines(side, view) {
    const scope = view[side], want = view[side + "Name"].trim().toLowerCase(), lines = new Map();
    const level = Math.max(levels.indexOf(view.by), !scope ? 0 : scope.includes("/") ? 2 : 1);
    this.data[side].forEach((index, leaf) => {
      const p = this.data.parties[index];
      if (scope && scope !== (p.ns || "-") && scope !== p.above || !p.search.includes(want)) return;
      const opens = level === 0 && p.ns ? p.ns : level === 1 ? p.above : "";
      const key = opens || p.full, line = lines.get(key);
      if (line) line.leaves.push(leaf);
      else lines.set(key, {
        ns: p.ns || "", name: !opens ? p.name : opens === p.ns ? "*" : p.workload, opens, party: opens ? null : p, leaves: [leaf],
      });
    });
    for (const line of lines.values()) line.full = (line.ns ? line.ns + "/" : "") + line.name;
    return [...lines.values()];
  }

  // kind returns the kind of the cell from leaf i to leaf j, as an index in data.kinds.
  kind(i, j) {
    const own = this.own.get(i);
    return own && own.j === j ? own.kind : this.rows[this.data.rowOf[i]][j];
  }

  // answers returns the answers in list, limited to the port if one is given. In their reasons, it
  // replaces placeholders by the names of the pairs' policies: "from" between control characters stands
  // for all policies that isolate the source, and "to.0" for the first that isolates the destination.
  // If the names differ between pairs, the reasons describe the policies without naming them.
  answers(list, port, pairs = []) {
    const named = text => text.replace(/\u0001(from|to)(?:\.(\d+))?\u0001/g, (_, end, n) => {
      const names = new Set(pairs.map(pair => {
        const p = end === "from" ? this.party("from", pair[0]) : this.party("to", pair[1]), all = (end === "from" ? p.egress : p.ingress) || [];
        return n ? all[n] : all.join(", ");
      }));
      const whose = end === "from" ? "the source" : "the destination";
      return names.size === 1 ? [...names][0] : n ? "a policy of " + whose : "the policies of " + whose;
    });
    const all = list.map(a => ({ports: this.data.texts[a.ports], verdict: a.verdict, why: this.data.texts[a.why]}));
    for (const a of all) if (pairs.length) a.why = named(a.why);
    return port ? all.filter(a => includes(a.ports, port)).map(a => ({...a, ports: port})) : all;
  }

  // at sets the states of all kinds to those at a port. Without a port, it sets them to those at all
  // ports.
  at(port) {
    this.port = port;
    this.states = this.data.kinds.map(kind => {
      if (!port || !kind.state || kind.state === "self") return kind.state;
      const [first] = this.answers(kind.answers, port);
      return !first || first.verdict === "deny" ? "closed" : first.verdict === "allow" ? "open" : "part";
    });
  }

  // counts returns the number of pairs of leaves in two lines, by state.
  counts(row, column) {
    const counts = {"": 0, open: 0, part: 0, declared: 0, closed: 0, self: 0};
    for (const i of row.leaves) for (const j of column.leaves) counts[this.states[this.kind(i, j)]]++;
    return counts;
  }

  state(row, column) {
    if (row.leaves.length === 1 && column.leaves.length === 1) return this.states[this.kind(row.leaves[0], column.leaves[0])];
    return combined(this.counts(row, column));
  }

  // portsOf returns what was seen from leaf i to leaf j, at the port of the view if it has one.
  portsOf(i, j) {
    const row = this.seen.get(i), cell = row && row.get(j);
    return !cell ? [] : this.port ? cell.ports.filter(p => p.port === this.port) : cell.ports;
  }

  // use returns the bits of what was seen in two lines.
  use(row, column) {
    let bits = 0;
    for (const i of row.leaves) for (const j of column.leaves) {
      const ports = this.portsOf(i, j), used = ports.some(p => p.open && p.allowed && !p.own);
      if (used) bits |= uses.used;
      else if (isOpen(this.states[this.kind(i, j)])) bits |= uses.unused;
      if (ports.some(p => !p.open)) bits |= uses.tried;
      if (ports.some(p => p.changed)) bits |= uses.changed;
    }
    return bits;
  }

  // portsSeen returns what was seen in two lines, by port; the most frequent come first.
  portsSeen(row, column) {
    const all = new Map();
    for (const i of row.leaves) for (const j of column.leaves) for (const p of this.portsOf(i, j)) {
      const key = [p.port, p.open, p.own].join(), o = all.get(key);
      if (!o) { all.set(key, {...p, pairs: 1}); continue; }
      const first = [o.first, p.first].filter(t => t);
      Object.assign(o, {
        allowed: o.allowed + p.allowed, denied: o.denied + p.denied, changed: o.changed || p.changed, pairs: o.pairs + 1,
        first: first.length ? Math.min(...first) : 0, last: Math.max(o.last, p.last),
      });
    }
    return [...all.values()].sort((a, b) => b.allowed + b.denied - a.allowed - a.denied);
  }

  // neverUsed returns the open ports from leaf i to leaf j that were never used, as text.
  neverUsed(i, j) {
    const row = this.seen.get(i), cell = row && row.get(j), kind = this.data.kinds[this.kind(i, j)];
    const all = cell ? cell.never : kind.answers.filter(a => a.verdict !== "deny").map(a => this.data.texts[a.ports]).join(", ");
    return !this.port || !all ? all : includes(all, this.port) ? this.port : "";
  }

  // groups groups the pairs of leaves in two lines by the kind of their cells. Open groups come first.
  groups(row, column) {
    const groups = new Map();
    for (const i of row.leaves) for (const j of column.leaves) {
      const kind = this.kind(i, j), g = groups.get(kind);
      if (!this.states[kind]) continue;
      if (g) g.pairs.push([i, j]);
      else groups.set(kind, {kind, state: this.states[kind], pairs: [[i, j]]});
    }
    const rank = g => states.indexOf(g.state);
    return [...groups.values()].sort((a, b) => rank(a) - rank(b) || b.pairs.length - a.pairs.length);
  }

  // text returns the text of a cell: the open ports if they are the same for all pairs, and otherwise
  // the number of pairs with open ports.
  text(row, column) {
    const [i] = row.leaves, [j] = column.leaves, counts = this.counts(row, column), state = combined(counts);
    if (state === "self" || state === "") return state;
    if (state === "closed") return "–";
    if (state === "open" && (this.port || !this.data.asked)) return this.port ? "open" : "all";
    const groups = this.groups(row, column).filter(g => g.state !== "self");
    const texts = new Set(groups.map(g => this.data.kinds[g.kind].text));
    if (texts.size === 1 && !this.port) return [...texts][0];
    if (row.leaves.length * column.leaves.length === 1) return this.port ? "part" : this.data.kinds[this.kind(i, j)].text;
    const open = counts.open + counts.part + counts.declared;
    return open + " of " + (open + counts.closed);
  }
}
