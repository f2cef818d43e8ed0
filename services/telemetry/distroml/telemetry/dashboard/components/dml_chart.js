import { echarts } from "nicegui-echart";
import { compact, stamp } from "dml_format";

const KEPT = 6000;
const MARKS = {
  checkpoint: { color: "--good", sign: "▲", word: "checkpoint" },
  failure: { color: "--bad", sign: "◆", word: "failure" },
  generation: { color: "--warn", sign: "●", word: "new generation" },
  scheme: { color: "--series-b", sign: "⇅", word: "scheme change" },
};
const QUIET = new Set(["checkpoint", "scheme"]);

// Lines over the step axis with what happened marked on it. Points come as [step, mean, min, max] and are appended.
export default {
  props: { options: Object },
  data: () => ({ points: 0, marks: [], summary: "" }),
  mounted() {
    this.rows = this.options.series.map(() => []);
    this.chart = echarts.init(this.$refs.plot, null, { renderer: "canvas" });
    this.resizing = new ResizeObserver(() => this.chart.resize());
    this.resizing.observe(this.$refs.plot);
    this.theming = new MutationObserver(() => this.draw());
    this.theming.observe(document.body, { attributes: true, attributeFilter: ["class"] });
    this.marks = this.options.marks || [];
    this.replace(this.options.data || [], this.marks);
  },
  beforeUnmount() {
    this.resizing.disconnect();
    this.theming.disconnect();
    this.chart.dispose();
  },
  computed: {
    legend() {
      const counts = {};
      for (const m of this.marks) counts[m.kind] = (counts[m.kind] || 0) + 1;
      return Object.keys(MARKS).filter((k) => counts[k]).map((k) => ({ kind: k, n: counts[k], word: MARKS[k].word }));
    },
  },
  methods: {
    color(name) {
      return getComputedStyle(document.body).getPropertyValue(name).trim();
    },
    replace(data, marks) {
      this.rows = this.options.series.map((_, i) => data[i] || []);
      if (marks) this.marks = marks;
      this.draw();
    },
    append(data, marks) {
      data.forEach((points, i) => {
        const rows = this.rows[i];
        if (points.length && rows.length && points[0][0] <= rows[rows.length - 1][0]) {
          while (rows.length && rows[rows.length - 1][0] >= points[0][0]) rows.pop();
        }
        rows.push(...points);
        if (rows.length > KEPT) this.$emit("overflow");
      });
      if (marks) this.marks = marks;
      this.draw();
    },
    markLines() {
      return this.marks.map((m) => {
        const color = this.color(MARKS[m.kind].color);
        return {
          xAxis: m.step,
          name: m.text,
          lineStyle: { color, type: QUIET.has(m.kind) ? "dotted" : "solid", width: QUIET.has(m.kind) ? 1 : 1.5, opacity: 0.85 },
          label: { show: true, position: "end", distance: 1, formatter: MARKS[m.kind].sign, color, fontSize: 10 },
          value: m.at,
        };
      });
    },
    update_chart() {
      this.draw();
    },
    draw() {
      if (!this.chart) return;
      const text = this.color("--muted"), line = this.color("--line"), card = this.color("--card"), ink = this.color("--ink");
      const seen = this.rows.filter((r) => r.length);
      const range = seen.length ? [Math.min(...seen.map((r) => r[0][0])), Math.max(...seen.map((r) => r[r.length - 1][0]), 1)] : [0, 1];
      this.points = Math.max(0, ...this.rows.map((r) => r.length));
      const axis = { axisLabel: { color: text, fontSize: 11 }, axisLine: { show: false }, axisTick: { show: false } };
      const series = [], stacked = !!this.options.stacked;
      this.options.series.forEach((s, i) => {
        const color = this.color(s.color), rows = this.rows[i];
        const common = { type: "line", showSymbol: rows.length === 1, symbolSize: 5, animation: false, yAxisIndex: s.axis || 0, xAxisIndex: stacked ? s.axis || 0 : 0, sampling: "lttb" };
        if (s.band && rows.some((p) => p[3] > p[2])) {
          const area = { ...common, lineStyle: { opacity: 0 }, silent: true, stack: "band" + i, stackStrategy: "all", symbol: "none", tooltip: { show: false }, sampling: undefined };
          series.push({ ...area, data: rows.map((p) => [p[0], p[2]]) });
          series.push({ ...area, data: rows.map((p) => [p[0], p[3] - p[2]]), areaStyle: { color, opacity: 0.14 } });
        }
        series.push({
          ...common, name: s.label, areaStyle: s.fill ? { color, opacity: 0.1 } : undefined, data: rows.map((p) => [p[0], p[1]]), color,
          lineStyle: { color, width: 2 }, emphasis: { disabled: true },
          markLine: i === 0 || stacked ? {
            animation: false, symbol: ["none", "none"], data: this.markLines(), silent: false, emphasis: { disabled: true },
            tooltip: { trigger: "item", formatter: (p) => `${echarts.format.encodeHTML(p.name)}<br><small>${stamp(p.value)}</small>` },
          } : undefined,
        });
      });
      this.chart.setOption({
        animation: false,
        textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
        grid: stacked
          ? [{ left: 52, right: 10, top: 34, height: "34%" }, { left: 52, right: 10, bottom: 24, height: "32%" }]
          : { left: 44, right: 10, top: 16, bottom: 24 },
        title: stacked
          ? this.options.series.map((s, i) => ({ text: s.label, left: 4, top: i ? "48.5%" : 0, textStyle: { color: this.color(s.color), fontSize: 12, fontWeight: 500 } }))
          : [],
        axisPointer: { link: [{ xAxisIndex: "all" }] },
        tooltip: {
          trigger: "axis", backgroundColor: card, borderColor: line, textStyle: { color: ink, fontSize: 12 }, confine: true,
          axisPointer: { lineStyle: { color: text, opacity: 0.5 } },
          formatter: (items) => {
            const shown = items.filter((p) => p.seriesName && !p.seriesName.startsWith("series"));
            return shown.length ? `<b>step ${shown[0].value[0].toLocaleString()}</b><br>` + shown.map((p) => `${p.marker} ${p.seriesName}: <b>${compact(p.value[1])}</b>`).join("<br>") : "";
          },
        },
        xAxis: this.options.axes.map((_, i) => ({
          type: "value", gridIndex: stacked ? i : 0, ...axis, min: range[0], max: range[1], splitLine: { show: false }, minInterval: 1,
          axisLabel: { ...axis.axisLabel, show: !stacked || i === this.options.axes.length - 1, showMinLabel: false, showMaxLabel: false, formatter: (v) => (Number.isInteger(v) ? compact(v) : ""), hideOverlap: true },
        })),
        yAxis: this.options.axes.map((a, i) => ({
          type: "value", scale: a.scale !== false, ...axis, gridIndex: stacked ? i : 0, splitNumber: stacked ? 2 : 4,
          splitLine: { lineStyle: { color: line } },
          axisLabel: { ...axis.axisLabel, formatter: (v) => compact(v) },
        })),
        series,
      }, { replaceMerge: ["series", "title"] });
      const first = this.rows[0];
      this.summary = first.length
        ? `${this.options.title} from ${compact(first[0][1])} at step ${first[0][0]} to ${compact(first[first.length - 1][1])} at step ${first[first.length - 1][0]}; ` + this.legend.map((l) => `${l.n} × ${l.word}`).join(", ")
        : `${this.options.title}: no samples`;
    },
  },
  template: `
    <figure class="chart" :data-points="points" :data-marks="marks.map((m) => m.kind + '@' + m.step).join(' ')">
      <figcaption><span class="cap">{{ options.title }}</span>
        <span class="legend"><span v-for="l in legend" :key="l.kind" :class="'mk mk-' + l.kind"><i aria-hidden="true"></i>{{ l.n }} {{ l.word }}{{ l.n > 1 ? 's' : '' }}</span></span>
      </figcaption>
      <div ref="plot" class="plot" :class="{ tall: options.stacked }" role="img" :aria-label="summary"></div>
      <div v-if="!points" class="empty over"><b>No samples</b></div>
    </figure>`,
};
