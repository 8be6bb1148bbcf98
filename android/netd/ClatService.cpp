// SPDX-License-Identifier: Apache-2.0

#include "ClatService.h"

#include <android/net/clat/IClatdController.h>
#include <binder/IServiceManager.h>
#include <binder/Status.h>
#include <errno.h>
#include <utils/String16.h>

namespace android::net::clat {

namespace {

// Never waits for the service: netd's callers hold locks. If it is not there, the call fails, and
// init restarts it.
sp<IClatdController> service() {
    const sp<IBinder> binder = defaultServiceManager()->checkService(String16("clatd_controller"));
    return binder == nullptr ? nullptr : interface_cast<IClatdController>(binder);
}

// The service's errors are errno values. Any other error is binder's: the service died, or the
// caller lacks permission.
int errnoOf(const binder::Status& status) {
    if (status.isOk()) return 0;
    if (status.exceptionCode() == binder::Status::EX_SERVICE_SPECIFIC) {
        return -status.serviceSpecificErrorCode();
    }
    return status.exceptionCode() == binder::Status::EX_SECURITY ? -EPERM : -ENOTCONN;
}

}  // namespace

int start(const std::string& iface, const std::string& nat64Prefix, unsigned netId,
          std::string* v6) {
    const sp<IClatdController> clat = service();
    if (clat == nullptr) return -ENOTCONN;
    const int error = errnoOf(clat->networkAddInterface(netId, iface));
    if (error != 0) return error;
    return errnoOf(clat->clatdStart(iface, nat64Prefix, v6));
}

int stop(const std::string& iface) {
    const sp<IClatdController> clat = service();
    return clat == nullptr ? -ENODEV : errnoOf(clat->clatdStop(iface));
}

void networkDestroyed(unsigned netId) {
    if (const sp<IClatdController> clat = service(); clat != nullptr) clat->networkDestroy(netId);
}

void interfaceRemoved(unsigned netId, const std::string& iface) {
    // ENOENT: it never had a CLAT.
    if (const sp<IClatdController> clat = service(); clat != nullptr) {
        clat->networkRemoveInterface(netId, iface);
    }
}

std::string dump() {
    std::string text;
    const sp<IClatdController> clat = service();
    if (clat == nullptr || !clat->dumpText({}, &text).isOk()) return {};
    return text;
}

}  // namespace android::net::clat
