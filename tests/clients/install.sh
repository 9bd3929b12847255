#!/usr/bin/env bash
# The clients that people have, each in an environment of its own below .clients; tests/clients uses what it finds there.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
for client in webuiapi==0.9.17 sd-backend-client==0.5.0; do
  folder=.clients/${client%%==*}
  "$python" -m venv "$folder"
  "$folder/bin/pip" install --quiet "$client" numpy
done
mkdir -p .clients/npm
npm install --prefix .clients/npm --silent --no-audit --no-fund openai@6.49.0 ai@6.0.326 @ai-sdk/openai-compatible@2.0.91
