// A search field that says what it holds once the typing pauses. "/" puts the cursor into it.
export default {
  props: { value: String, placeholder: String },
  data: () => ({ text: "" }),
  mounted() {
    this.text = this.value || "";
    this._key = (e) => {
      if (e.key === "/" && !e.target.closest("input,select,textarea")) {
        e.preventDefault();
        this.$refs.field.focus();
      }
    };
    addEventListener("keydown", this._key);
  },
  beforeUnmount() {
    removeEventListener("keydown", this._key);
  },
  methods: {
    typed() {
      clearTimeout(this._wait);
      this._wait = setTimeout(() => this.$emit("change", this.text), 200);
    },
  },
  template: `
    <label class="search">
      <svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="8.5" cy="8.5" r="5.5"/><path d="M13 13l4.5 4.5"/></svg>
      <input ref="field" type="search" v-model="text" @input="typed" :placeholder="placeholder" :aria-label="placeholder"
             autocomplete="off" spellcheck="false"/>
    </label>`,
};
