#!/bin/sh
# What a machine has in the place of our agent: it is the real one, and is killed once. `dies-RUN` says when: in which of its
# verbs, once which event is the last one in the run's journal, and how many seconds later. `died-RUN` says that it was.
real="@REAL@" dir="@DIR@" verb=$2 before='' run=''
for word in "$@"; do
    [ "$before" != --run ] || run=$word
    before=$word
done
if read -r wanted after later 2> /dev/null < "$dir/dies-$run" && [ "$verb" = "$wanted" ] && [ ! -e "$dir/died-$run" ] &&
    tail -n 1 "/var/lib/echoes-appliance/runs/$run/journal.jsonl" | grep -q "\"event\":\"$after\""; then
    # What is begun beside a shell has nothing to read, unless it is told to.
    exec 3<&0
    if [ "$verb" = start ]; then
        # It is asked this once. On a busy host it may have done it all by the time it is killed: then it died before it said so.
        "$real" "$@" <&3 > /dev/null &
        sleep "$later"
        kill -KILL $! 2> /dev/null
        : > "$dir/died-$run"
        wait $!
        exit 137
    fi
    "$real" "$@" <&3 &
    sleep "$later"
    # One that has come to its end cannot be killed: then it will be another one's turn.
    state=Z
    { read -r _ _ state _ < "/proc/$!/stat"; } 2> /dev/null
    [ "$state" = Z ] || { kill -KILL $! && : > "$dir/died-$run"; }
    wait $!
    exit
fi
exec "$real" "$@"
