// Compiled once per processor level, with that level's flags and DISTROML_LEVEL naming its table. Everything in it has
// internal linkage and nothing comes from the C++ library: the linker would keep one copy of a shared function for all
// levels, and might keep that of a level that this processor lacks.
#include <cstddef>

#include "kernels.h"

#include "blocks.inc"
#include "lowrank.inc"

namespace distroml {

const Kernels DISTROML_LEVEL = {
    first_nonfinite, encode_int8, encode_int4, encode_sign,  add_int8, add_int4, add_sign, collect,
    settle,          project,     project_back, restore,     subtract, orthogonalise,
};

}  // namespace distroml
