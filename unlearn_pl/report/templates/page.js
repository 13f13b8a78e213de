"use strict";
(async () => {
  const at = (id) => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const fault = (message) => Object.assign(at("fault"), { textContent: message, hidden: false });

  // What was packed when the page was made: zlib, then base64.
  const inflate = async (id) => {
    const bytes = Uint8Array.from(atob(at(id).textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).text();
  };

  /* Tables: a button in each head sorts the rows of each group. */
  const sortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    const kept = new Map([...table.tBodies].map((body) => [body, [...body.rows]]));
    const value = (row, column) => {
      const cell = row.cells[column];
      if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
      return column && table.querySelector("[data-value]") ? null : cell.textContent.trim();
    };
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = { ascending: "descending", descending: "none" }[head.ariaSort] ?? "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (order !== "none") head.setAttribute("aria-sort", order);
        for (const [body, rows] of kept) body.append(...ordered(rows, (row) => row.className === "group" ? undefined : value(row, column), order));
      });
    });
  };
  // What has no value comes last either way; undefined stays first.
  const ordered = (rows, value, order) => {
    if (order === "none") return rows;
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    const keyed = rows.map((row) => [value(row), row]);
    const heads = keyed.filter(([key]) => key === undefined);
    const known = keyed.filter(([key]) => key !== undefined && key !== null).sort(([a], [b]) => sign * compare(a, b));
    return [...heads, ...known, ...keyed.filter(([key]) => key === null)].map(([, row]) => row);
  };
  document.querySelectorAll("table.sortable").forEach(sortable);

  /* Colours: as the system has them, until somebody chooses. */
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => at("theme").value === "dark" || (at("theme").value === "system" && system.matches);
  const recolour = () => {
    document.documentElement.dataset.theme = at("theme").value;
    drawn.forEach((spec, plot) => window.Plotly.relayout(plot, spec[dark() ? "dark" : "light"]));
  };
  const drawn = new Map();
  at("theme").addEventListener("change", recolour);
  system.addEventListener("change", recolour);

  if (typeof DecompressionStream === "undefined") {
    fault("This browser is older than 2023 and cannot show the figures and generations; verdict, tables and settings are below.");
    return;
  }

  /* Figures: each is drawn when it comes into sight, and hidden panels when they are opened. */
  const WIDE = 900;
  const figures = async () => {
    const plots = [...document.querySelectorAll(".plot")];
    if (!plots.length) return;
    const specs = JSON.parse(await inflate("data-figures"));
    document.head.append(make("script", { textContent: await inflate("data-plotly") }));
    const layoutOf = (plot, spec) => {
      const layout = structuredClone(plot.clientWidth < WIDE ? spec.narrow : spec.layout);
      for (const [path, colour] of Object.entries(spec[dark() ? "dark" : "light"])) {
        const names = path.split(".");
        const last = names.pop();
        names.reduce((inner, name) => (inner[name] ??= {}), layout)[last] = colour;
      }
      return layout;
    };
    const draw = (plot) => {
      const spec = specs[plot.dataset.figure];
      plot.dataset.side = plot.clientWidth < WIDE ? "narrow" : "wide";
      drawn.set(plot, spec);
      const layout = layoutOf(plot, spec);
      plot.style.height = `${layout.height}px`; // which Plotly takes for its own when the window changes
      return window.Plotly.react(plot, spec.data, layout, spec.config);
    };
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        seen.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "400px" });
    plots.forEach((plot) => seen.observe(plot));
    addEventListener("resize", () => {
      for (const plot of drawn.keys()) if ((plot.clientWidth < WIDE ? "narrow" : "wide") !== plot.dataset.side) draw(plot);
    });
    document.querySelectorAll("details.numbers").forEach((details) => {
      details.addEventListener("toggle", () => numbers(details, specs[details.dataset.figure]), { once: true });
    });
  };

  // A figure's marks as a table, for readers who cannot see it, and for copying: what each says on hover.
  const plain = (text) => new DOMParser().parseFromString(text, "text/html").body.textContent;
  const numbers = (details, spec) => {
    const body = make("tbody");
    const titles = (spec.layout.annotations ?? []).map((one) => one.text).filter((text) => text.startsWith("<b>"));
    const panels = new Set(spec.data.map((trace) => trace.xaxis));
    for (const trace of spec.data) {
      const panel = titles.length === panels.size ? plain(titles[[...panels].indexOf(trace.xaxis)] ?? "") : "";
      for (const text of [trace.hovertext ?? []].flat(2)) {
        if (!text) continue;
        const [series, ...values] = text.split("<br>").map(plain);
        body.append(make("tr", {}, ...[panel, series, values.join("; ")].map((cell) => make("td", { textContent: cell }))));
      }
    }
    const heads = ["Panel", "Series", "Values"].map((name) => make("th", { scope: "col", textContent: name }));
    const caption = make("caption", { textContent: "What each mark says when it is pointed at." });
    const scroll = make("div", { className: "scroll tall", tabIndex: 0 }, make("table", {}, caption, make("thead", {}, make("tr", {}, ...heads)), body));
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "Numbers of the figure");
    details.append(scroll);
  };

  /* Generations: [id, split, task, kind, prompt, expected, [text of each model], [score of each model]]. */
  const PAGE = 20;
  const generations = async () => {
    if (!at("rows")) return;
    const { models, first, rows } = JSON.parse(await inflate("data-generations"));
    const fields = { split: 1, task: 2, kind: 3 };
    const option = (value, text) => make("option", { value, textContent: text });
    for (const [id, place] of Object.entries(fields)) {
      at(id).append(option("", "all"), ...[...new Set(rows.map((row) => row[place]))].sort().map((name) => option(name, name)));
    }
    at("model").append(...models.map((name, place) => option(place, name)));
    models.forEach((name, place) => {
      const box = make("input", { type: "checkbox", value: place, defaultChecked: first.includes(place), checked: first.includes(place) });
      at("models").append(make("label", {}, box, name));
    });
    const haystacks = rows.map((row) => [row[0], row[4], row[5], ...row[6]].join("\n").toLowerCase());
    let page = 0;
    let sorted = { model: null, order: "none" };

    const shownModels = () => [...at("models").querySelectorAll("input:checked")].map((box) => Number(box.value));
    const fits = { whole: (s) => s === 1, part: (s) => s > 0 && s < 1, none: (s) => s === 0, unscored: (s) => s === null };
    const matching = () => {
      const needle = at("search").value.trim().toLowerCase();
      const leak = fits[at("leak").value];
      const model = Number(at("model").value);
      const shown = shownModels();
      const found = rows.filter((row, place) =>
        (!needle || haystacks[place].includes(needle)) &&
        Object.entries(fields).every(([id, field]) => !at(id).value || row[field] === at(id).value) &&
        (!leak || leak(row[7][model])) &&
        (!at("differ").checked || new Set(shown.map((one) => row[6][one])).size > 1));
      return ordered(found, (row) => row[7][sorted.model] ?? null, sorted.order);
    };

    const head = (shown) => {
      const cell = (name, properties = {}) => make("th", { scope: "col", ...properties }, name);
      const scored = shown.map((place) => {
        const button = make("button", { type: "button", title: "sort by score" }, models[place]);
        const one = cell(button);
        if (sorted.model === place && sorted.order !== "none") one.setAttribute("aria-sort", sorted.order);
        button.addEventListener("click", () => {
          const current = sorted.model === place ? sorted.order : "none";
          sorted = { model: place, order: { none: "descending", descending: "ascending", ascending: "none" }[current] };
          show(0);
          at("rows").tHead.querySelectorAll("button")[shown.indexOf(place)].focus();
        });
        return one;
      });
      const row = make("tr", {}, cell("Row", { className: "about plain" }), cell("Prompt", { className: "plain" }), cell("Expected", { className: "plain" }), ...scored);
      row.setAttribute("role", "row");
      [...row.cells].forEach((one) => one.setAttribute("role", "columnheader"));
      at("rows").tHead.replaceChildren(row);
      at("rows").style.setProperty("--columns", 3 + shown.length);
    };

    const line = (row, shown) => {
      const about = make("th", { scope: "row", className: "about" }, `${row[1]}, ${row[2]}, ${row[3]} `, make("small", { textContent: row[0] }));
      const cell = (label, ...content) => {
        const one = make("td", {}, ...content);
        one.dataset.label = label;
        return one;
      };
      const answers = shown.map((place) => {
        const [text, score] = [row[6][place], row[7][place]];
        const nothing = (words) => make("div", { className: "nothing", textContent: words });
        const written = text === null ? nothing("not asked") : text.trim() ? marked(text.trimStart(), row[5]) : nothing("empty");
        const number = score === null ? "not scored" : `score ${Number(score.toFixed(3))}`;
        return cell(models[place], written, make("small", { textContent: number }));
      });
      const plainly = (text) => make("div", { className: "text", textContent: text });
      const made = make("tr", {}, about, cell("Prompt", plainly(row[4])), cell("Expected", plainly(row[5])), ...answers);
      made.setAttribute("role", "row");
      [...made.cells].forEach((one, place) => one.setAttribute("role", place ? "cell" : "rowheader"));
      return made;
    };

    const show = (to) => {
      const [found, shown] = [matching(), shownModels()];
      page = Math.max(0, Math.min(to, Math.ceil(found.length / PAGE) - 1));
      const part = found.slice(page * PAGE, (page + 1) * PAGE);
      head(shown);
      at("rows").tBodies[0].replaceChildren(...part.map((row) => line(row, shown)));
      for (const text of at("rows").querySelectorAll(".text")) {
        if (text.scrollHeight <= text.clientHeight) continue;
        Object.assign(text, { className: "text long", tabIndex: 0, title: "scrolls" }); // the dashes say that it goes on
      }
      at("count").textContent = found.length
        ? `Rows ${page * PAGE + 1} to ${page * PAGE + part.length} of ${found.length}${found.length < rows.length ? `, out of ${rows.length}` : ""}`
        : `None of the ${rows.length} rows is like that.`;
      at("back").disabled = page === 0;
      at("next").disabled = (page + 1) * PAGE >= found.length;
    };

    let waiting;
    at("search").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => show(0), 150);
    });
    at("filters").addEventListener("change", () => show(0));
    at("filters").addEventListener("submit", (event) => event.preventDefault());
    at("filters").addEventListener("reset", () => setTimeout(() => show(0)));
    const turn = (by) => {
      show(page + by);
      at("rows").scrollIntoView();
    };
    at("back").addEventListener("click", () => turn(-1));
    at("next").addEventListener("click", () => turn(1));
    show(0);
  };

  // The longest sequence of words that both texts have in the same order, marked in the first.
  const LONGEST = 700;
  const words = (text) => text.split(/(\s+|\[(?:e-mail|date|address|number|part) \d+\])/).filter((word) => word); // masks are words
  const bare = (word) => word.toLowerCase().replace(/^[^\p{L}\p{N}[]+|[^\p{L}\p{N}\]]+$/gu, "") || word;
  const marked = (text, expected) => {
    const [own, other] = [words(text), words(expected).filter((word) => word.trim()).map(bare).slice(0, LONGEST)];
    const places = own.map((word, place) => place).filter((place) => own[place].trim()).slice(0, LONGEST);
    const keys = places.map((place) => bare(own[place]));
    const table = Array.from({ length: keys.length + 1 }, () => new Uint16Array(other.length + 1));
    for (let i = keys.length - 1; i >= 0; i--) {
      for (let j = other.length - 1; j >= 0; j--) {
        table[i][j] = keys[i] === other[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
      }
    }
    const common = new Set();
    for (let i = 0, j = 0; i < keys.length && j < other.length;) {
      if (keys[i] === other[j]) { common.add(places[i]); i++; j++; } else if (table[i + 1][j] >= table[i][j + 1]) i++; else j++;
    }
    const box = make("div", { className: "text" });
    for (let place = 0; place < own.length;) {
      let end = place + 1;
      const same = common.has(place);
      const joins = (at) => (own[at].trim() ? common.has(at) === same : !same || common.has(at + 1));
      while (end < own.length && joins(end)) end++;
      const piece = own.slice(place, end).join("");
      box.append(same ? make("mark", { textContent: piece }) : piece);
      place = end;
    }
    return box;
  };

  try {
    await Promise.all([figures(), generations()]);
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    fault(`A part of this page could not be shown: ${error.message}`);
    throw error;
  }
})();
