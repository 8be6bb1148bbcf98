// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <binder/IBinder.h>
#include <binder/Parcel.h>

#include <cstdint>

namespace android {

// In the process of the test a service is its own binder.
class IInterface : public IBinder {
  public:
    virtual IBinder* onAsBinder() = 0;
};

#define DECLARE_META_INTERFACE(INTERFACE) static const char* descriptor;

template <typename I>
sp<I> interface_cast(const sp<IBinder>& binder) {
    return std::dynamic_pointer_cast<I>(binder);
}

}  // namespace android
