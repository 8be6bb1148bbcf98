// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace android {

using status_t = int32_t;

}  // namespace android
