#!/bin/sh
# Starts the compose file's store with the one key pair that it was given. Its volumes are small: it sets several apart for
# every bucket, and those of the usual 30 GB fit on no ordinary disk.
set -eu
cat >/tmp/s3.json <<JSON
{"identities": [{"name": "longtake",
  "credentials": [{"accessKey": "${S3_ACCESS_KEY}", "secretKey": "${S3_SECRET_KEY}"}],
  "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}
JSON
exec weed server -dir=/data -ip=127.0.0.1 -ip.bind=0.0.0.0 -s3 -s3.port=8333 -s3.config=/tmp/s3.json \
    -volume.max=0 -master.volumeSizeLimitMB=1024
