// One chart: a curve or more over outer steps, tokens or time, drawn by the ECharts that NiceGUI brings along.
import { echarts } from "nicegui-echart";
import { clock, markWords, name, short, whole } from "./format.js";
import { palette } from "./palette.js";
import { rowAt } from "./store.js";

const BINS = 48;
// More validation points than this are drawn smaller.
const FEW = 30;
// An axis of more than some hundred years would have more ticks than anyone waits for.
const LAST_S = 4e9;
const AXES = {
  step: {
    type: "value",
    of: (row) => row.step,
    label: (x) => whole(x),
    said: (row) => `outer step ${whole(row.step)}`,
  },
  tokens: {
    type: "value",
    of: (row) => row.tokens,
    label: (x) => short(x),
    said: (row) => `${short(row.tokens)} tokens`,
  },
  time: {
    type: "time",
    of: (row) => 1000 * Math.min(LAST_S, Math.max(0, row.time)),
    label: null,
    said: (row) => clock(row.time),
  },
};
const GLYPHS = {
  came: { symbol: "triangle", rotate: 0, color: "--came", offset: 13 },
  gone: { symbol: "triangle", rotate: 180, color: "--gone", offset: -13 },
  fault: { symbol: "diamond", rotate: 0, color: "--fault", offset: 0 },
};

/** The y axis: [low, high, interval], round numbers all, whole ones if wanted. A single absurd value cannot pull the ends
 *  away: what is far outside of the rest is not shown. */
export function range(values, zero, splits, whole) {
  const sorted = values.filter((value) => value !== null && Number.isFinite(value)).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1, 1];
  const at = (part) => sorted[Math.round(part * (sorted.length - 1))];
  const span = at(0.9) - at(0.1) || Math.abs(at(0.5)) || 1;
  const inside = sorted.filter((value) => value >= at(0.1) - 6 * span && value <= at(0.9) + 6 * span);
  const low = zero ? Math.min(0, inside[0]) : inside[0];
  const high = Math.max(inside.at(-1), low);
  const rough = (high - low || Math.abs(high) || 1) / splits;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((size) => size * power >= rough * 0.999);
  const interval = whole ? Math.max(1, Math.ceil(step)) : step;
  const [bottom, top] = [Math.floor(low / interval + 1e-9), Math.ceil(high / interval - 1e-9)];
  return [bottom * interval, Math.max(top, bottom + 1) * interval, interval];
}

/** On an axis 2.00 s is 2 s. */
function tick(text) {
  return text.replace(/(\.\d*?)0+(?!\d)/, "$1").replace(/\.(?!\d)/, "");
}

export default {
  props: {
    rows: { type: Array, required: true },
    curves: { type: Array, required: true }, // { key, label, color, area, step, dashed }
    axis: { type: String, default: "step" },
    format: { type: Function, required: true },
    label: { type: String, required: true },
    zero: { type: Boolean, default: false },
    counts: { type: Boolean, default: false },
    top: { type: Number, default: null },
    marks: { type: Array, default: () => [] },
    validations: { type: Array, default: () => [] },
    theme: { type: String, default: "" },
    small: { type: Boolean, default: false },
  },
  template: `
    <div class="chart" :class="{ small }">
      <div class="canvas" ref="canvas" tabindex="0" role="img" :aria-label="summary" @keydown="step" @blur="leave"></div>
      <span class="unseen" aria-live="polite">{{ said }}</span>
    </div>`,
  data: () => ({ said: "" }),
  computed: {
    summary() {
      const curve = this.curves[0];
      const shown = this.rows.filter((row) => row[curve.key] !== null);
      if (!shown.length) return `${this.label}: nothing yet`;
      const [first, last] = [shown[0], shown.at(-1)];
      return `${this.label}: ${this.format(first[curve.key])} at outer step ${first.step}, ${this.format(
        last[curve.key],
      )} at outer step ${last.step}. Arrow keys read single steps.`;
    },
  },
  watch: {
    rows: "draw",
    marks: "draw",
    validations: "draw",
    axis: "draw",
    theme: "draw",
  },
  mounted() {
    this.font = getComputedStyle(this.$el).fontFamily;
    this.chart = echarts.init(this.$refs.canvas, null, { renderer: "canvas" });
    this.observer = new ResizeObserver(() => this.chart.resize());
    this.observer.observe(this.$refs.canvas);
    this.inSight = false;
    const seen = (entries) => {
      this.inSight = entries.at(-1).isIntersecting;
      if (this.late) this.draw();
    };
    this.sight = new IntersectionObserver(seen, { rootMargin: "50%" });
    this.sight.observe(this.$el);
    this.draw();
  },
  beforeUnmount() {
    this.observer.disconnect();
    this.sight.disconnect();
    this.chart.dispose();
  },
  methods: {
    draw() {
      if (!this.chart || this.queued) return;
      this.queued = true;
      this.$nextTick(() => {
        this.queued = false;
        if (this.chart.isDisposed()) return;
        // Out of sight it is drawn when it comes into sight.
        this.late = !this.inSight;
        if (this.inSight) this.chart.setOption(this.options());
      });
    },
    /** All of it where the look has changed, else what has come in since. */
    options() {
      const look = [this.axis, this.theme, this.rows.length < 3, this.validations.length > FEW].join();
      const whole = this.look !== look;
      this.look = look;
      const axis = AXES[this.axis];
      const c = palette(this.theme);
      const values = this.curves.flatMap((curve) => this.rows.map((row) => row[curve.key]));
      const [low, high, interval] = this.top
        ? [0, this.top, this.top / 2]
        : range(values, this.zero, this.small ? 3 : 5, this.counts);
      const font = this.font;
      const [yAxis, series] = [{ min: low, max: high, interval }, this.series(axis, c)];
      if (!whole) return { yAxis, series: series.map(({ id, data }) => ({ id, data })) };
      const text = { color: c["--muted"], fontSize: 11, fontFamily: font };
      return {
        animation: false,
        textStyle: { fontFamily: font },
        grid: { left: 8, right: 14, top: 10, bottom: 4, containLabel: true },
        xAxis: {
          type: axis.type,
          min: "dataMin",
          max: "dataMax",
          splitNumber: this.small ? 3 : 6,
          minInterval: this.axis === "step" ? 1 : 0,
          axisLine: { lineStyle: { color: c["--line"] } },
          axisTick: { show: false },
          splitLine: { show: false },
          axisLabel: {
            ...text,
            hideOverlap: true,
            showMaxLabel: false,
            ...(axis.label ? { formatter: axis.label } : {}),
          },
          axisPointer: { label: { show: false }, lineStyle: { color: c["--muted"], type: "solid", width: 1 } },
        },
        yAxis: {
          type: "value",
          ...yAxis,
          axisLine: { show: false },
          axisTick: { show: false },
          splitLine: { lineStyle: { color: c["--line"], width: 1 } },
          axisLabel: { ...text, formatter: (value) => tick(this.format(value)) },
        },
        tooltip: {
          trigger: "axis",
          confine: true,
          transitionDuration: 0,
          padding: 0,
          borderWidth: 0,
          backgroundColor: "transparent",
          extraCssText: "box-shadow: none",
          formatter: (points) => this.tip(points),
        },
        series,
      };
    },
    series(axis, c) {
      return [...this.lines(axis, c), ...(this.small ? [] : [this.validationPoints(axis, c), ...this.glyphs(axis, c)])];
    },
    lines(axis, c) {
      return this.curves.map((curve) => ({
        id: curve.key,
        type: "line",
        step: curve.step ? "end" : false,
        sampling: "lttb",
        showSymbol: this.rows.length < 3,
        symbolSize: 5,
        silent: true,
        emphasis: { disabled: true },
        lineStyle: { width: this.small ? 1.5 : 2, color: c[curve.color], type: curve.dashed ? [4, 3] : "solid" },
        itemStyle: { color: c[curve.color] },
        areaStyle: curve.area ? { color: c[curve.color], opacity: 0.12 } : undefined,
        data: this.rows.map((row, index) => [axis.of(row), row[curve.key], index]),
      }));
    },
    validationPoints(axis, c) {
      const rows = this.rows;
      const points = this.validations
        .filter(([step]) => step >= rows[0]?.step)
        .map(([step, loss]) => [axis.of(rowAt(rows, step)), loss]);
      const [size, border] = points.length > FEW ? [5, 1.5] : [8, 2];
      const style = { opacity: 1, color: c["--surface"], borderColor: c["--validation"], borderWidth: border };
      return {
        id: "validation",
        type: "scatter",
        symbolSize: size,
        silent: true,
        tooltip: { show: false },
        z: 4,
        itemStyle: style,
        data: points,
      };
    },
    /** One glyph for all of a kind that lie as close as glyphs would cover each other. */
    glyphs(axis, c) {
      const rows = this.rows;
      const [from, to] = rows.length ? [axis.of(rows[0]), axis.of(rows.at(-1))] : [0, 0];
      return Object.entries(GLYPHS).map(([weight, glyph]) => {
        const bins = new Map();
        for (const mark of this.marks) {
          if (mark.weight !== weight || !rows.length || mark.step < rows[0].step - 1) continue;
          const row = rowAt(rows, mark.step);
          const bin = to > from ? Math.round((BINS * (axis.of(row) - from)) / (to - from)) : 0;
          bins.set(bin, [row, (bins.get(bin)?.[1] ?? 0) + 1]);
        }
        const data = [...bins.values()]
          .filter(([row]) => row.loss !== null)
          .map(([row, number]) => ({
            value: [axis.of(row), row.loss],
            symbolSize: Math.min(15, 7 + 2 * Math.log2(number)),
          }));
        return {
          id: weight,
          type: "scatter",
          symbol: glyph.symbol,
          symbolRotate: glyph.rotate,
          symbolOffset: [0, glyph.offset],
          silent: true,
          tooltip: { show: false },
          z: 5,
          itemStyle: { color: c[glyph.color], opacity: 1 },
          data,
        };
      });
    },
    /** Built of text nodes: nothing that a member says becomes markup. */
    tip(points) {
      const index = points.find((point) => Array.isArray(point.value))?.value[2];
      const row = this.rows[index];
      const box = document.createElement("div");
      box.className = "tip";
      if (!row) return box;
      const add = (tag, text, kind = "") => {
        const element = document.createElement(tag);
        element.textContent = text;
        element.className = kind;
        box.append(element);
      };
      add(
        "p",
        this.axis === "step"
          ? `outer step ${whole(row.step)}`
          : `${AXES[this.axis].said(row)} · step ${whole(row.step)}`,
        "when",
      );
      for (const curve of this.curves) add("p", `${curve.label} ${this.format(row[curve.key])}`);
      const validated = this.validations.find(([step]) => step === row.step);
      if (validated) add("p", `validation ${this.format(validated[1])}`);
      const here = this.marks.filter((mark) => mark.step === row.step && mark.weight !== "note");
      for (const mark of here.slice(0, 4)) add("p", `${name(mark.member)} ${markWords(mark.kind, mark.words)}`, "mark");
      if (here.length > 4) add("p", `and ${here.length - 4} more`, "mark");
      return box;
    },
    step(event) {
      const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
      if (event.key === "Escape") return this.leave();
      if (!(event.key in moves) || !this.rows.length) return;
      event.preventDefault();
      const last = this.rows.length - 1;
      this.at = Math.min(last, Math.max(0, (this.at ?? last + 1) + moves[event.key]));
      this.chart.dispatchAction({ type: "showTip", seriesIndex: 0, dataIndex: this.at });
      const lines = this.tip([{ value: [0, 0, this.at] }]).children;
      this.said = Array.from(lines, (line) => line.textContent).join(", ");
    },
    leave() {
      this.at = undefined;
      this.said = "";
      this.chart.dispatchAction({ type: "hideTip" });
    },
  },
};
