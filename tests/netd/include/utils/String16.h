// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace android {

class String16 {
  public:
    explicit String16(const char* text) : mText(text) {}
    const std::string& text() const { return mText; }

  private:
    std::string mText;
};

}  // namespace android
