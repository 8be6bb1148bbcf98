// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utils/Errors.h>

#include <memory>

namespace android {

class Parcel;

class Parcelable {
  public:
    virtual ~Parcelable() = default;
    virtual status_t writeToParcel(Parcel* parcel) const = 0;
    virtual status_t readFromParcel(const Parcel* parcel) = 0;
};

}  // namespace android
