echo "made" > $out
