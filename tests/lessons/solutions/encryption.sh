# predict: readable=0 overhead=110 mtu=1370 wrong-key=node-1:flannel.1
key_1=$(wg genkey)
key_2=$(wg genkey)
tunnel() { # HOST KEY PEER-KEY PEER-ADDRESS PEER-VTEP
    public=$(printf %s "$3" | wg pubkey)
    printf %s "$2" | overlaynet exec "$1" -- sh -euc "
        ip link add wg0 type wireguard
        wg set wg0 listen-port 51820 private-key /dev/stdin \
            peer $public allowed-ips $4/32 endpoint $4:51820
        ip link set wg0 up
        bridge fdb replace $5 dev flannel.1 dst $4 via wg0 self permanent
        ip link set flannel.1 mtu 1370"
}
tunnel node-1 "$key_1" "$key_2" 192.168.50.12 02:0a:f4:02:00:00
tunnel node-2 "$key_2" "$key_1" 192.168.50.11 02:0a:f4:01:00:00
