// SPDX-License-Identifier: Apache-2.0
// What android/netd and the generated headers use of libutils and libbinder, as far as their users
// can tell; tests/tests/netd.rs.
#pragma once

#include <memory>

namespace android {

template <typename T>
class sp : public std::shared_ptr<T> {
  public:
    using std::shared_ptr<T>::shared_ptr;
    sp(std::shared_ptr<T> other) : std::shared_ptr<T>(std::move(other)) {}
};

}  // namespace android
