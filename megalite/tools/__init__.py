"""Commands beside the stages: conversion, generation, planning, the demo and its report."""
