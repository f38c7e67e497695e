# predict: last-seen=node-1:eth0 answered=10 route=stays address=10.244.2.2
overlaynet detach green
overlaynet attach green --label app=web
overlaynet heal
