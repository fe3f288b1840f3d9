// The draws of runtime/base/random.h. Kernels repeat this arithmetic; a change here is a change of
// every random number of every model.
#include "runtime/base/random.h"

static uint64_t splitmix64(uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

static uint32_t mix32(uint32_t h) {
  h ^= h >> 16;
  h *= 0x7FEB352Du;
  h ^= h >> 15;
  h *= 0x846CA68Bu;
  return h ^ (h >> 16);
}

base_key base_draw_key(uint64_t seed, uint64_t step, uint64_t op_key, uint64_t layer,
                       uint64_t sample) {
  const uint64_t numbers[] = {seed, step, op_key, layer, sample};
  uint64_t h = 0;
  for (int i = 0; i < 5; i++) h = splitmix64(h ^ numbers[i]);
  return (base_key){.k0 = (uint32_t)h, .k1 = (uint32_t)(h >> 32)};
}

uint32_t base_draw_at(base_key key, uint64_t index) {
  uint32_t x = (uint32_t)index, y = (uint32_t)(index >> 32);
  uint32_t h = mix32(x ^ key.k0);
  return mix32(h + key.k1 + y * 0x9E3779B9u);
}

uint32_t base_draw(uint64_t seed, uint64_t step, uint64_t op_key, uint64_t layer, uint64_t sample,
                   uint64_t index) {
  return base_draw_at(base_draw_key(seed, step, op_key, layer, sample), index);
}

uint32_t base_drop_below(double p) {
  if (!(p > 0)) return 0;
  return p >= 1 ? UINT32_MAX : (uint32_t)(p * 4294967296.0);
}
