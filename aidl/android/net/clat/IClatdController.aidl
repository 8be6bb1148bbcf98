/*
 * Copyright (C) 2026 The clat authors
 *
 * Licensed under the Apache License, Version 2.0 (the "License");
 * you may not use this file except in compliance with the License.
 * You may obtain a copy of the License at
 *
 *      http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software
 * distributed under the License is distributed on an "AS IS" BASIS,
 * WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
 * See the License for the specific language governing permissions and
 * limitations under the License.
 */

package android.net.clat;

import android.net.clat.ControllerStatus;
import android.net.clat.IClatdEventListener;

/**
 * Starts and stops 464XLAT (RFC 6877) on network interfaces.
 *
 * Callers are root, system and network_stack; anyone else gets EX_SECURITY. Errors are
 * service-specific: the code is an errno value, the message names the interface and the step that
 * failed.
 */
interface IClatdController {
    /**
     * Starts a CLAT on an interface.
     *
     * @param ifName the IPv6-only uplink, for example "wlan0".
     * @param nat64Prefix the network's NAT64 prefix with its length, for example "64:ff9b::/96".
     * @return the CLAT's own IPv6 address, as text.
     * @throws ServiceSpecificException EINVAL for a name with characters other than A-Z a-z 0-9 . _
     *         -, ENAMETOOLONG for one of more than 15, on Android of more than 12 (the TUN device
     *         is named "v4-" and this); EBUSY when a CLAT already runs there, ENODEV when the
     *         interface belongs to no network; EAFNOSUPPORT for an IPv4 prefix, EINVAL for one that
     *         is malformed, has host bits set, is no /96 or is of the interface's own network;
     *         EADDRNOTAVAIL when no IPv4 address is left or the interface has no global IPv6
     *         address; without netd, ETIMEDOUT or EIO when clatd does not set up its device;
     *         ESHUTDOWN when the controller is ending; else what the system said in the step that
     *         failed.
     */
    @utf8InCpp String clatdStart(in @utf8InCpp String ifName, in @utf8InCpp String nat64Prefix);

    /**
     * Stops the CLAT of an interface and removes all that it held. A start under way there is
     * waited for.
     *
     * @param ifName the uplink that clatdStart was given.
     * @throws ServiceSpecificException ENODEV when no CLAT runs there.
     */
    void clatdStop(in @utf8InCpp String ifName);

    /**
     * Tells that an interface now belongs to a network.
     *
     * @param netId the network's number, 1 to 65535.
     * @param iface the interface's name.
     * @throws ServiceSpecificException EBUSY when it belongs to another network, EINVAL for a bad
     *         number or name.
     */
    void networkAddInterface(int netId, in @utf8InCpp String iface);

    /**
     * Tells that an interface has left a network. A CLAT that runs there is ended.
     *
     * @param netId the network's number.
     * @param iface the interface's name.
     * @throws ServiceSpecificException ENOENT when it does not belong to that network.
     */
    void networkRemoveInterface(int netId, in @utf8InCpp String iface);

    /** Returns what runs. */
    ControllerStatus getStatus();

    /**
     * Returns the text of `dumpsys`, for transports that have no dump transaction (RPC binder).
     *
     * @param args what `dumpsys` is given behind the service's name. "--json" gives what getStatus
     *         gives, as JSON; what is not known is ignored.
     */
    @utf8InCpp String dumpText(in @utf8InCpp String[] args);

    /**
     * Has a listener told of what happens from now on. One that is registered already stays so, and
     * is told once. Over RPC binder the session needs an incoming connection.
     *
     * @param listener who is to be told.
     * @throws ServiceSpecificException EUSERS when there are too many listeners, ESRCH when the
     *         listener is dead or not in another process, ENOTCONN when there is no connection to
     *         tell it by.
     */
    void registerEventListener(in IClatdEventListener listener);

    /**
     * Has a listener told no more.
     *
     * @param listener who was registered.
     * @throws ServiceSpecificException ENOENT when it is not registered.
     */
    void unregisterEventListener(in IClatdEventListener listener);

    /**
     * Tells that a network is gone, and that its interfaces belong to none. CLATs that run there
     * are ended. A network that nothing was ever told about is gone already.
     *
     * @param netId the network's number, 1 to 65535.
     * @throws ServiceSpecificException EINVAL for a bad number.
     */
    void networkDestroy(int netId);
}
