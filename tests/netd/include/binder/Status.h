// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace android::binder {

class Status {
  public:
    enum Exception : int32_t {
        EX_NONE = 0,
        EX_SECURITY = -1,
        EX_SERVICE_SPECIFIC = -8,
        EX_TRANSACTION_FAILED = -129,
    };

    Status() = default;
    static Status fromExceptionCode(int32_t exception) { return Status(exception, 0); }
    static Status fromServiceSpecificError(int32_t error) {
        return Status(EX_SERVICE_SPECIFIC, error);
    }

    bool isOk() const { return mException == EX_NONE; }
    int32_t exceptionCode() const { return mException; }
    int32_t serviceSpecificErrorCode() const {
        return mException == EX_SERVICE_SPECIFIC ? mError : 0;
    }

  private:
    Status(int32_t exception, int32_t error) : mException(exception), mError(error) {}

    int32_t mException = EX_NONE;
    int32_t mError = 0;
};

}  // namespace android::binder
