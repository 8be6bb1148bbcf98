// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <binder/IInterface.h>
#include <utils/String16.h>

namespace android {

class IServiceManager {
  public:
    virtual ~IServiceManager() = default;
    virtual sp<IBinder> checkService(const String16& name) const = 0;
};

sp<IServiceManager> defaultServiceManager();

}  // namespace android
