#!/usr/bin/env bash
# The guide's three rules, and what they need to hold: everybody else is kept out.
set -euo pipefail
help() { cat <<'TEXT'
firewall.sh apply|remove|show [--http] [--docker --interface NAME] [--dry-run]
apply: TCP port 443 is open to everybody, 5432 (PostgreSQL) to API_SUBNET, 6379 (Redis) to INTERNAL_SUBNET; everybody else is dropped at these ports and at 80.
  The machine itself (lo) and connections that exist are let through. Other ports, SSH among them, are not touched. The rules are in a chain of their own, SSR, that
  is replaced as a whole: applying twice is applying once. IPv6 has the same. Rules are gone after a restart of the machine: run this at its start.
remove: takes the chain away.   show: prints it.
  --http       open port 80 too: the redirect to https, and the proofs for certificates (deploy/scripts/certificates.sh)
  --docker     for ports that Docker publishes: they never pass INPUT, but DOCKER-USER. There the chain SSR-DOCKER is for what comes in at
  --interface  the interface to the outside, such as eth0; what containers tell each other is not touched
  --dry-run    print the rules and change nothing
  API_SUBNET, INTERNAL_SUBNET   such as 10.0.1.0/24; several, also of IPv6, with commas: 10.0.1.0/24,fd00:1::/64. A single address is one of /32.
Exit codes: 0 done, 1 iptables refused (says why), 2 wrong use.
Example: API_SUBNET=10.0.1.0/24 INTERNAL_SUBNET=10.0.0.0/16 deploy/scripts/firewall.sh apply --http
TEXT
}
wrong() { echo "firewall.sh: $1" >&2; exit 2; }
failed() { echo "firewall.sh: $1" >&2; exit 1; }
what='' http='' docker='' interface='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --help) help; exit 0 ;;
    --http) http=yes ;;
    --docker) docker=yes ;;
    --interface) interface=${2:-}; [[ $interface =~ ^[A-Za-z0-9._+-]{1,15}$ ]] || wrong "--interface is '$interface': give a name such as eth0"; shift ;;
    --dry-run) dry=yes ;;
    apply | remove | show) [ -z "$what" ] || wrong "both $what and $1: give one"; what=$1 ;;
    *) wrong "'$1' is not known: give apply, remove or show (see --help)" ;;
  esac
  shift
done
[ -n "$what" ] || wrong "nothing to do: give apply, remove or show"
[ -z "$docker" ] || [ "$what" = show ] || [ -n "$interface" ] || wrong "--docker without --interface: name the interface to the outside, such as eth0"
[ -z "$interface" ] || [ -n "$docker" ] || wrong "--interface is '$interface' without --docker: it has no meaning in INPUT"

subnets() { # of one version of IP; each is looked at
  local found one part
  IFS=, read -ra found <<< "${!2:-}"
  for one in "${found[@]}"; do
    if [[ $one == *:* ]]; then
      [[ $one =~ ^[0-9A-Fa-f:]{2,39}(/[0-9]{1,3})?$ ]] || wrong "$2 has '$one': give a subnet such as fd00:1::/64"
      part=${one#*/}; [[ $one != */* || $((10#$part)) -le 128 ]] || wrong "$2 has '$one': IPv6 has at most 128 bits after the slash"
      [ "$part" != 0 ] || wrong "$2 has '$one', which is everybody: give a subnet"
    else
      [[ $one =~ ^([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})(/([0-9]{1,2}))?$ ]] || wrong "$2 has '$one': give a subnet such as 10.0.1.0/24"
      for part in "${BASH_REMATCH[@]:1:4}"; do [ $((10#$part)) -le 255 ] || wrong "$2 has '$one': $part is more than 255"; done
      part=${BASH_REMATCH[6]:-32}; [ $((10#$part)) -le 32 ] || wrong "$2 has '$one': IPv4 has at most 32 bits after the slash"
      [ $((10#$part)) != 0 ] || wrong "$2 has '$one', which is everybody: give a subnet"
    fi
    if [[ $one == *:* ]]; then [ "$1" != 6 ] || echo "$one"; else [ "$1" != 4 ] || echo "$one"; fi
  done
}
declare -A api internal
if [ "$what" = apply ]; then
  for name in API_SUBNET INTERNAL_SUBNET; do [ -n "${!name:-}" ] || wrong "$name is not set: give the subnet that may ask, such as 10.0.1.0/24"; done
  for ip in 4 6; do api[$ip]=$(subnets $ip API_SUBNET); internal[$ip]=$(subnets $ip INTERNAL_SUBNET); done
fi

rules() { # for iptables-restore, which puts in all of them or none. Argument: version of IP
  local one
  echo '*filter'
  if [ -n "$docker" ]; then
    # the port that was asked for, before Docker has changed it; what may pass goes back to Docker's own rules
    local port='-p tcp -m conntrack --ctdir ORIGINAL --ctorigdstport'
    echo ':SSR-DOCKER - [0:0]'
    echo '-A SSR-DOCKER -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN'
    for one in ${api[$1]}; do echo "-A SSR-DOCKER -s $one $port 5432 -j RETURN"; done
    for one in ${internal[$1]}; do echo "-A SSR-DOCKER -s $one $port 6379 -j RETURN"; done
    [ -n "$http" ] || echo "-A SSR-DOCKER $port 80 -j DROP"
    for one in 5432 6379; do echo "-A SSR-DOCKER $port $one -j DROP"; done
  else
    echo ':SSR - [0:0]'
    echo '-A SSR -i lo -j ACCEPT'
    echo '-A SSR -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT'
    echo '-A SSR -p tcp --dport 443 -j ACCEPT'
    [ -z "$http" ] || echo '-A SSR -p tcp --dport 80 -j ACCEPT'
    for one in ${api[$1]}; do echo "-A SSR -s $one -p tcp --dport 5432 -j ACCEPT"; done
    for one in ${internal[$1]}; do echo "-A SSR -s $one -p tcp --dport 6379 -j ACCEPT"; done
    echo '-A SSR -j DROP'
  fi
  echo COMMIT
}
chain=SSR from=INPUT
jump=(-p tcp -m multiport --dports '80,443,5432,6379' -j SSR)
if [ -n "$docker" ]; then chain=SSR-DOCKER from=DOCKER-USER jump=(-i "$interface" -j SSR-DOCKER); fi

versions=(4)
if [ -e /proc/net/if_inet6 ]; then versions+=(6); else echo "firewall.sh: this machine has no IPv6: rules for IPv4 alone" >&2; fi
for ip in "${versions[@]}"; do
  table=iptables; [ "$ip" = 4 ] || table=ip6tables
  if [ -n "$dry" ]; then
    case $what in
      apply) echo "+ $table-restore --noflush"; rules "$ip" | sed 's/^/+   /'; echo "+ $table -I $from 1 ${jump[*]}   (if it is not there)" ;;
      remove) echo "+ $table -D $from ${jump[*]}; $table -F $chain; $table -X $chain   (if they are there)" ;;
      show) echo "+ $table -S $chain" ;;
    esac
    continue
  fi
  command -v "$table" > /dev/null || failed "there is no $table on this machine: install iptables"
  "$table" -w 5 -S INPUT > /dev/null || failed "$table does not work here: are you root?"
  case $what in
    apply)
      if [ -n "$docker" ] && ! "$table" -w 5 -S DOCKER-USER > /dev/null 2>&1; then
        [ "$ip" = 6 ] || failed "there is no chain DOCKER-USER: start Docker first"
        echo "firewall.sh: Docker filters no IPv6 here (no chain DOCKER-USER): rules for IPv4 alone" >&2; continue
      fi
      rules "$ip" | "$table-restore" -w 5 --noflush || failed "$table-restore refused the rules"
      "$table" -w 5 -C "$from" "${jump[@]}" 2> /dev/null || "$table" -w 5 -I "$from" 1 "${jump[@]}" || failed "$table refused the way from $from to $chain"
      echo "$table: $chain holds" ;;
    remove)
      "$table" -w 5 -S "$chain" > /dev/null 2>&1 || { echo "$table: there is no $chain"; continue; }
      while "$table" -w 5 -C "$from" "${jump[@]}" 2> /dev/null; do "$table" -w 5 -D "$from" "${jump[@]}"; done
      "$table" -w 5 -F "$chain"; "$table" -w 5 -X "$chain" || failed "$chain is still used: $table -S shows where"
      echo "$table: $chain is gone" ;;
    show) "$table" -w 5 -S "$chain" 2> /dev/null || echo "$table: there is no $chain" ;;
  esac
done
