// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utils/Errors.h>
#include <utils/StrongPointer.h>

namespace android {

class IBinder {
  public:
    virtual ~IBinder() = default;
};

}  // namespace android
