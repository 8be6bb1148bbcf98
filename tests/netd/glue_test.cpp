// SPDX-License-Identifier: Apache-2.0
//
// The glue of android/netd in front of a service that notes what it is told, and that is sometimes
// not there.

#include <android/net/clat/IClatdController.h>
#include <binder/IServiceManager.h>
#include <errno.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "ClatService.h"

using android::IBinder;
using android::sp;
using android::String16;
using android::binder::Status;
namespace clat = android::net::clat;

namespace {

void check(bool is_so, const char* what, int line) {
    if (is_so) return;
    fprintf(stderr, "line %d: not so: %s\n", line, what);
    exit(1);
}
#define CHECK(is_so) check(is_so, #is_so, __LINE__)

std::vector<std::string> said;
// What the next call is answered with.
Status answer;
bool running = true;

Status note(std::string call) {
    said.push_back(std::move(call));
    const Status given = answer;
    answer = Status();
    return given;
}

struct Service : clat::IClatdController {
    IBinder* onAsBinder() override { return this; }
    Status clatdStart(const std::string& iface, const std::string& prefix,
                      std::string* v6) override {
        *v6 = "2001:db8::1";
        return note("start " + iface + " " + prefix);
    }
    Status clatdStop(const std::string& iface) override { return note("stop " + iface); }
    Status networkAddInterface(int32_t netId, const std::string& iface) override {
        return note("add " + std::to_string(netId) + " " + iface);
    }
    Status networkRemoveInterface(int32_t netId, const std::string& iface) override {
        return note("remove " + std::to_string(netId) + " " + iface);
    }
    Status networkDestroy(int32_t netId) override {
        return note("destroy " + std::to_string(netId));
    }
    Status getStatus(clat::ControllerStatus*) override { return note("status"); }
    Status dumpText(const std::vector<std::string>& args, std::string* text) override {
        *text = "  ClatdController\n";
        return note("dump " + std::to_string(args.size()));
    }
    Status registerEventListener(const sp<clat::IClatdEventListener>&) override {
        return note("register");
    }
    Status unregisterEventListener(const sp<clat::IClatdEventListener>&) override {
        return note("unregister");
    }
};

struct ServiceManager : android::IServiceManager {
    sp<IBinder> checkService(const String16& name) const override {
        CHECK(name.text() == "clatd_controller");
        return running ? sp<IBinder>(std::make_shared<Service>()) : nullptr;
    }
};

}  // namespace

sp<android::IServiceManager> android::defaultServiceManager() {
    return std::make_shared<ServiceManager>();
}

int main() {
    std::string v6;
    CHECK(clat::start("rmnet0", "64:ff9b::/96", 100, &v6) == 0 && v6 == "2001:db8::1");
    CHECK(said == (std::vector<std::string>{"add 100 rmnet0", "start rmnet0 64:ff9b::/96"}));
    said.clear();

    // The interface goes, the network goes, another one comes.
    clat::interfaceRemoved(100, "rmnet0");
    clat::networkDestroyed(100);
    CHECK(clat::start("rmnet0", "64:ff9b::/96", 101, &v6) == 0);
    CHECK(clat::stop("rmnet0") == 0);
    CHECK(clat::dump() == "  ClatdController\n");
    CHECK(said == (std::vector<std::string>{"remove 100 rmnet0", "destroy 100", "add 101 rmnet0",
                                            "start rmnet0 64:ff9b::/96", "stop rmnet0", "dump 0"}));
    said.clear();

    // Errors are errno values, and one of the first call is no start.
    answer = Status::fromServiceSpecificError(EBUSY);
    CHECK(clat::start("rmnet0", "64:ff9b::/96", 102, &v6) == -EBUSY && said.size() == 1);
    answer = Status::fromServiceSpecificError(ENODEV);
    CHECK(clat::stop("rmnet0") == -ENODEV);
    answer = Status::fromExceptionCode(Status::EX_SECURITY);
    CHECK(clat::stop("rmnet0") == -EPERM);
    answer = Status::fromExceptionCode(Status::EX_TRANSACTION_FAILED);
    CHECK(clat::stop("rmnet0") == -ENOTCONN);
    said.clear();

    running = false;
    CHECK(clat::start("rmnet0", "64:ff9b::/96", 100, &v6) == -ENOTCONN);
    CHECK(clat::stop("rmnet0") == -ENODEV);
    CHECK(clat::dump().empty());
    clat::networkDestroyed(100);
    clat::interfaceRemoved(100, "rmnet0");
    CHECK(said.empty());
}
