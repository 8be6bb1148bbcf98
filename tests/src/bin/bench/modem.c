/*
 * Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except
 * in compliance with the License. You may obtain a copy of the License at
 * http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software distributed under the License
 * is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express
 * or implied. See the License for the specific language governing permissions and limitations under
 * the License.
 */

/*
 * A modem in the kernel: what leaves by the TUN device DEVICE goes over the wire WIRE, a veth, and
 * the other way round.
 */
#include "kernel.h"

SEC("tc/leaves") int leaves(struct __sk_buff *skb)
{
	/* Both ends of the wire have the address 02:00:00:00:00:00. */
	const __u8 header[ETH_HLEN] = { 2, [6] = 2, [12] = ETH_P_IPV6 >> 8, [13] = ETH_P_IPV6 & 0xff };

	if (skb->protocol != net16(ETH_P_IPV6))
		return TC_ACT_PIPE;
	if (skb_change_head(skb, sizeof(header), 0) || skb_store(skb, 0, header, sizeof(header), 0))
		return TC_ACT_SHOT;
	return redirect(WIRE, 0);
}

SEC("tc/arrives") int arrives(struct __sk_buff *skb)
{
	/* The link header stays behind. */
	return redirect(DEVICE, BPF_F_INGRESS);
}
