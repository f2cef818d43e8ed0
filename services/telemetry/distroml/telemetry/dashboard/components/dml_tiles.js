// Counts that are also the filter of the list below them.
export default {
  props: { items: Array, label: String },
  template: `
    <div class="tiles" role="group" :aria-label="label">
      <component v-for="t in items" :key="t.key" :is="t.pick ? 'button' : 'div'" class="tile" :class="'tone-' + t.tone"
                 :type="t.pick ? 'button' : null" :aria-pressed="t.pick ? String(!!t.pressed) : null" :data-key="t.key"
                 @click="t.pick && $emit('pick', t.key)">
        <span class="label"><i aria-hidden="true"></i>{{ t.label }}</span><span class="value num">{{ t.value }}</span>
      </component>
    </div>`,
};
