// The site's own script: theme, search and sorting. Without it every page still reads and every link works.
(() => {
  "use strict";
  const root = document.documentElement;
  const remembered = { get: () => { try { return localStorage.getItem("ssr-theme"); } catch { return null; } },
                       set: value => { try { localStorage.setItem("ssr-theme", value); } catch { /* a browser that keeps nothing for files */ } } };
  const chosen = remembered.get();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;

  function theme() {
    const button = document.querySelector("button.theme");
    const tell = () => { button.textContent = isDark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`); };
    button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; remembered.set(root.dataset.theme); tell(); });
    prefersDark.addEventListener("change", tell);
    tell();
    button.hidden = false;
  }

  function menu() {
    const details = document.querySelector("details.menu"), wide = matchMedia("(min-width: 60rem)");
    if (!details) return;
    const fit = () => { details.open = wide.matches; };
    wide.addEventListener("change", fit);
    fit();
    const here = details.querySelector("[aria-current=page]"), side = details.parentElement;
    if (here && wide.matches) side.scrollTop = Math.max(0, here.offsetTop - side.offsetTop - 80);
  }

  const fold = text => text.normalize("NFD").replace(/[\u0300-\u036f]/g, "").toLowerCase();
  let sections = null, waiting = null;  // [address, page, heading, text] each, folded beside it

  window.ssrSearch = rows => { sections = rows.map(([address, page, heading, text]) => ({ address, page, heading, text, top: fold(`${page} ${heading}`), all: fold(`${page} ${heading} ${text}`) })); waiting?.(); };

  function loadIndex(then) {
    if (sections) return then();
    waiting = then;
    if (document.querySelector("script.index")) return;
    const script = document.createElement("script");
    script.className = "index";
    script.src = `${document.body.dataset.root}assets/search.js`;
    document.head.append(script);
  }

  const startsWord = (text, word) => { for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1)) if (at === 0 || !/[\p{L}\p{N}]/u.test(text[at - 1])) return at; return -1; };

  function find(query) {
    const words = fold(query).split(/[^\p{L}\p{N}_$%]+/u).filter(Boolean);
    if (!words.length) return null;
    const hits = [];
    for (const one of sections) {
      if (!words.every(word => startsWord(one.all, word) >= 0)) continue;
      hits.push({ one, score: words.filter(word => startsWord(one.top, word) >= 0).length });
    }
    return { words, hits: hits.sort((a, b) => b.score - a.score) };
  }

  function excerpt(text, words) {
    const folded = fold(text), places = words.map(word => startsWord(folded, word)).filter(at => at >= 0);
    const first = Math.max(0, (places.length ? Math.min(...places) : 0) - 50), start = first && text.indexOf(" ", first) + 1;
    const line = document.createElement("span");
    const piece = (start ? "… " : "") + text.slice(start, start + 170) + (start + 170 < text.length ? " …" : "");
    if (folded.length !== text.length) { line.textContent = piece; return line; }  // letters that fold to two: no marks rather than wrong ones
    const low = fold(piece);
    let at = 0;
    while (at < piece.length) {
      let next = -1, length = 0;
      for (const word of words) { const found = startsWord(low.slice(at), word); if (found >= 0 && (next < 0 || found < next)) { next = found; length = word.length; } }
      if (next < 0) break;
      const mark = document.createElement("mark");
      mark.textContent = piece.slice(at + next, at + next + length);
      line.append(piece.slice(at, at + next), mark);
      at += next + length;
    }
    line.append(piece.slice(at));
    return line;
  }

  function search() {
    const form = document.querySelector("form.search"), input = form.querySelector("input"), panel = document.querySelector(".found");
    const status = panel.querySelector("p"), list = panel.querySelector("ol"), page = 30;
    let shown = page;
    const close = () => { panel.hidden = true; };
    const show = () => loadIndex(() => {
      const found = find(input.value);
      list.replaceChildren();
      if (!found) return close();
      const { words, hits } = found;
      status.textContent = hits.length ? `${hits.length} place${hits.length === 1 ? "" : "s"}` : "Nothing found";
      for (const { one } of hits.slice(0, shown)) {
        const link = document.createElement("a"), name = document.createElement("b"), item = document.createElement("li");
        link.href = document.body.dataset.root + one.address;
        name.textContent = one.heading && one.heading !== one.page ? `${one.page} › ${one.heading}` : one.page;
        link.append(name, excerpt(one.text, words));
        item.append(link);
        list.append(item);
      }
      if (hits.length > shown) {
        const more = document.createElement("button"), item = document.createElement("li");
        more.type = "button";
        more.textContent = `Show ${Math.min(page, hits.length - shown)} more`;
        more.addEventListener("click", () => { const at = shown; shown += page; show(); list.querySelectorAll("a")[at]?.focus(); });
        item.append(more);
        list.append(item);
      }
      panel.hidden = false;
    });
    const links = () => [...list.querySelectorAll("a, button")];
    input.addEventListener("input", () => { shown = page; show(); });
    input.addEventListener("focus", () => loadIndex(() => { if (input.value) show(); }));
    form.addEventListener("submit", event => { event.preventDefault(); if (!panel.hidden) list.querySelector("a")?.click(); });
    panel.addEventListener("click", event => { if (event.target.closest("a")) close(); });
    document.addEventListener("click", event => { if (!event.target.closest(".found, form.search")) close(); });
    document.addEventListener("keydown", event => {
      const typing = event.target.closest("input, textarea, select");
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); input.focus(); input.select(); }
      else if (event.key === "Escape" && !panel.hidden) { close(); input.focus(); }
      else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !panel.hidden && event.target.closest(".found, form.search")) {
        event.preventDefault();
        const all = links(), at = all.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
        if (at < 0) input.focus(); else all[Math.min(at, all.length - 1)]?.focus();
      }
    });
    form.hidden = false;
  }

  function sorting() {
    for (const head of document.querySelectorAll("th[data-sort]")) {
      const button = document.createElement("button"), place = head.cellIndex, body = head.closest("table").tBodies[0];
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      const key = row => { const cell = row.cells[place]; return fold(cell.dataset.key ?? cell.textContent.trim()); };
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * key(a).localeCompare(key(b))));
      });
    }
  }

  document.addEventListener("DOMContentLoaded", () => { theme(); menu(); search(); sorting(); });
})();
