// Parts that the measuring modes' JSON has in common: docs/bench-schema.md.
#pragma once

#include "json.h"
#include "model.h"
#include "options.h"
#include "process.h"

namespace adakv::runner {

JsonObject runner_json(const Options& o);
JsonObject memory_json(const Memory& loaded, const Memory& end);
JsonObject cache_json(Model& model);

}  // namespace adakv::runner
