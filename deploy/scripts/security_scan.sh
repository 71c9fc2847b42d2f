#!/usr/bin/env bash
# Look over code, scripts, images and manifests with the tools that are here, and say of each whether it passed, found something, or was not run.
set -euo pipefail
help() { cat <<'TEXT'
security_scan.sh [--image IMAGE] [--report DIR] [--allow-skipped] [--dry-run]
bandit (Python), detect-secrets (all files of the repository but tests and data), shellcheck (scripts), hadolint (Dockerfiles), gixy (nginx), checkov (Kubernetes), pip-audit (locked packages),
and with --image trivy (the image). What is accepted stands with its reason in deploy/security/accepted.txt.
A tool that is not installed, or cannot reach its advisories, is SKIPPED: that is never passed.
  --report   a folder for the tools' own words (they are shown where something was found)
  TOOLS      more folders to look for the tools in (.venv/bin:.venv/checkov/bin of the repository);  ROOT  what to look over (the repository)
Exit codes: 0 all passed, 1 something was found (says what), 2 wrong use, 3 nothing was found but something was skipped (0 with --allow-skipped).
Example: deploy/scripts/security_scan.sh --image ssr-api:latest --report scan
TEXT
}
wrong() { echo "security_scan.sh: $1" >&2; exit 2; }
image='' report='' allow='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry=yes; shift; continue ;;
    --allow-skipped) allow=yes; shift; continue ;;
    --image) [[ ${2:-} =~ ^[A-Za-z0-9./:@_-]+$ ]] || wrong "--image is '${2:-}': give an image such as ssr-api:latest"; image=$2 ;;
    --report) [ -n "${2:-}" ] || wrong "--report has no folder: give one"; report=$2 ;;
    *) wrong "'$1' is not known: see --help" ;;
  esac
  shift 2
done
ROOT=$(cd "${ROOT:-$(dirname "$0")/../..}" && pwd)
PATH=$PATH:${TOOLS:-$ROOT/.venv/bin:$ROOT/.venv/checkov/bin}
[ -n "$report" ] || { report=$(mktemp -d); trap 'rm -rf "$report"' EXIT; }
mkdir -p "$report"
report=$(cd "$report" && pwd)
cd "$ROOT"
accepted() { awk -v tool="$1" '$1 == tool && NF > 2 {print $2}' deploy/security/accepted.txt; }
without() { grep -vxFf <(accepted "$1") || true; } # lines that are not accepted

# Each prints findings, a line each; nothing: passed. 3: could not be run.
run_bandit() { bandit -q -r ssr_nb -ll -f custom --msg-template '{relpath}:{test_id}' --exit-zero 2> /dev/null | sort -u | without bandit; }
run_detect_secrets() {
  local files options=()
  mapfile -t files < <(find . -type f -size -500k -not -path './.*' -not -path './tests/*' -not -path './nbs/*' -not -path './runs/*' -not -path './reference_sets/*' -not -path '*/node_modules/*' -not -name '*.lock'; find . -maxdepth 1 -type f; find deploy -name '.env*')
  while read -r one; do options+=(--exclude-secrets "$one"); done < <(accepted secret)
  # words such as api_key=… in code are no secrets; the detectors of real ones stay
  detect-secrets scan --disable-plugin KeywordDetector "${options[@]}" "${files[@]}" | grep -oE '"(filename|line_number|type)": *("[^"]*"|[0-9]+)' | sed 's/.*: *//' | paste -d ' ' - - - || true
}
run_shellcheck() { local files; mapfile -t files < <(find deploy tests -name '*.sh'); shellcheck -x -f gcc "${files[@]}" || true; }
run_hadolint() { local files; mapfile -t files < <(find deploy -name '*Dockerfile'); hadolint --no-color "${files[@]}" || true; }
run_gixy() { { gixy deploy/nginx/nginx.conf 2> /dev/null || [ $? = 1 ]; } | sed -n 's/^>> Problem: \[\([a-z_]*\)\].*/\1/p' | sort -u | without gixy; }
run_checkov() { checkov --directory deploy/k8s --framework kubernetes --skip-check "$(accepted checkov | paste -sd ,)" --compact --quiet -o cli 2> /dev/null | grep -E '^Check:|FAILED for' | paste -d ' ' - - || true; }
run_pip_audit() { pip-audit --disable-pip --require-hashes -r requirements/image.lock --progress-spinner off > "$report/pip-audit.txt" 2>&1 || { grep -E '(GHSA|CVE|PYSEC)-' "$report/pip-audit.txt" || return 3; }; }
run_trivy() { [ -n "$image" ] || return 3; trivy image --quiet --severity HIGH,CRITICAL --exit-code 1 "$image" > "$report/trivy.txt" 2>&1 || { grep -E 'CVE-' "$report/trivy.txt" || return 3; }; }

found='' skipped=''
for tool in bandit detect-secrets shellcheck hadolint gixy checkov pip-audit trivy; do
  if [ -n "$dry" ]; then echo "+ $tool"; continue; fi
  if ! command -v "$tool" > /dev/null; then echo "SKIPPED  $tool: not installed"; skipped=yes; continue; fi
  state=0
  told=$("run_${tool//-/_}") || state=$?
  if [ "$state" = 3 ]; then echo "SKIPPED  $tool: its advisories cannot be reached, or there is nothing to look at (--image)"; skipped=yes
  elif [ "$state" != 0 ]; then echo "FAILED   $tool: it ended with $state"; found=yes
  elif [ -n "$told" ]; then echo "FAILED   $tool:"; printf '%s\n' "$told" | tee "$report/$tool.txt" | sed 's/^/  /'; found=yes
  else echo "passed   $tool"; fi
done
[ -z "$found" ] || exit 1
[ -z "$skipped" ] || [ -n "$allow" ] || exit 3
