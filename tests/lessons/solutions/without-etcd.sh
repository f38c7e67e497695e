# predict: lost=0 wired=no led-to=2 writes=0
overlaynet heal
tries=0
until overlaynet attach blue; do
    tries=$((tries + 1))
    [ $tries -lt 50 ]
    sleep 0.2
done
