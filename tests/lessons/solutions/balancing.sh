# predict: second=50 answering=1 open=same new=another
on() { overlaynet exec node-1 -- iptables -w -t nat "$@"; }
on -R BY-HAND 2 -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.244.1.4:80
on -R BY-HAND 3 -p tcp -j DNAT --to-destination 10.244.1.5:80
overlaynet apply -f - <<'SERVICE'
apiVersion: v1
kind: Service
metadata: {name: shop}
spec:
  clusterIP: 10.112.0.30
  selector: {app: shop}
  sessionAffinity: ClientIP
  ports: [{port: 80}]
SERVICE
