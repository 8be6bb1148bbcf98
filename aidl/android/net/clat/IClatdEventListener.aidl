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

/**
 * Is told what becomes of CLATs. Calls come in the order in which things happened. A listener that
 * leaves dozens of them unread is dropped, as is one whose process dies.
 */
oneway interface IClatdEventListener {
    /** A CLAT ended because somebody called clatdStop. */
    const int STOP_REQUESTED = 0;
    /** A CLAT ended because the controller is ending. */
    const int STOP_SHUTDOWN = 1;
    /** A CLAT ended because its uplink left its network, or the network is gone. */
    const int STOP_NETWORK_GONE = 2;
    /** A CLAT ended because its uplink is gone, or was made anew. */
    const int STOP_UPLINK_GONE = 3;
    /**
     * A CLAT ended because something that it needs could not be put back; the controller's log says
     * what.
     */
    const int STOP_FAILED = 4;

    /**
     * A CLAT was started, or goes on with another name, prefix or address: its uplink was renamed
     * or renumbered, or another node has the address that it had.
     *
     * @param ifName the uplink's name.
     * @param nat64Prefix the NAT64 prefix with its length, "64:ff9b::/96".
     * @param v4 the CLAT's IPv4 address.
     * @param v6 the CLAT's IPv6 address.
     */
    void onClatdStarted(in @utf8InCpp String ifName, in @utf8InCpp String nat64Prefix,
            in @utf8InCpp String v4, in @utf8InCpp String v6);

    /**
     * A CLAT has ended, and all that it held is gone.
     *
     * @param ifName the uplink's name.
     * @param reason why it ended, one of the STOP constants; there may be more of them in time.
     */
    void onClatdStopped(in @utf8InCpp String ifName, int reason);

    /**
     * A clatd died, and another one was started in its place: the CLAT has the addresses that it
     * had.
     *
     * @param ifName the uplink's name.
     * @param pid process id of the new clatd.
     * @param restarts how often that has happened to this CLAT.
     * @param cause how the last one ended, for people: "exited with status 1".
     */
    void onClatdRestarted(in @utf8InCpp String ifName, int pid, int restarts,
            in @utf8InCpp String cause);

    /**
     * A clatd died. Unless its CLAT ends, onClatdRestarted follows, at most 10 s later.
     *
     * @param ifName the uplink's name.
     * @param pid process id that the clatd had.
     * @param cause how it ended, for people: "exited with status 1".
     */
    void onClatdDied(in @utf8InCpp String ifName, int pid, in @utf8InCpp String cause);

    /**
     * A host on the IPv4 internet was asked whether IPv4 works: at the start, and when the CLAT has
     * another address or path. Only where the controller was told whom to ask, and when the answer
     * is another than before.
     *
     * @param ifName the uplink's name.
     * @param working "yes" or "no".
     */
    void onClatdProbed(in @utf8InCpp String ifName, in @utf8InCpp String working);
}
